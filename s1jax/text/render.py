"""A row becomes one training example: tokens, and which of them are in the loss. Pure; no JAX.

The format is upstream's (simplescaling/s1@77272c6 data/tokenization.py:18-34): one user turn with the question as it
is, one assistant turn with the trace under the think header and the answer under the answer header. Chats of several
turns are that format turn by turn; a turn that has no thinking is put as the chat template has it.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from s1jax.config import BadInput
from s1jax.records import question_id
from s1jax.text.formats import format_of, read_row, read_trace
from s1jax.text.tokens import Markers, Tokenizer
from s1jax.text.turns import ChatTurn, one_name

TrainOn = Literal["last", "all"]


@dataclasses.dataclass(frozen=True)
class Row:
    """A rendered example. The loss is on `ids[prompt_length:]`, headers of thinking included, but for `masked`.

    Attributes:
      prompt_length: where the first answer that is trained on begins: all after its generation prompt.
      masked: spans `(begin, end)` behind it that are not in the loss: what others say between answers.
    """

    id: str
    ids: tuple[int, ...]
    prompt_length: int
    masked: tuple[tuple[int, int], ...] = ()

    @property
    def loss_tokens(self) -> int:
        """Tokens in the loss."""
        return len(self.ids) - self.prompt_length - sum(end - begin for begin, end in self.masked)

    def cut(self, length: int) -> "Row":
        """Its first `length` tokens."""
        masked = tuple((begin, min(end, length)) for begin, end in self.masked if begin < length)
        return dataclasses.replace(self, ids=self.ids[:length], masked=masked)


@dataclasses.dataclass(frozen=True)
class Example:
    """The three texts of an example, as the data set has them (not stripped); `thinking` is joined."""

    question: str
    thinking: str
    answer: str


@dataclasses.dataclass(frozen=True)
class _Style:
    """How assistants' turns are put: the arguments of `render_turns`."""

    tokenizer: Tokenizer
    markers: Markers
    answer_prefix: str | None


def render(
    question: str,
    thinking: str | Sequence[str],
    answer: str,
    tokenizer: Tokenizer,
    markers: Markers,
    *,
    id: str | None = None,
    system: str | None = None,
    answer_prefix: str | None = "Answer: ",
) -> Row:
    """Tokens of one example. An added token spelled out in question, trace or answer stays plain text.

    Args:
      question: the user turn, unchanged.
      thinking: the trace; the items of a list are joined by newlines. Stripped.
      answer: stripped; gets `answer_prefix` unless the prefix without its spaces stands anywhere in it.
      id: by default the hash of the question.
      system: a system turn, None for what the template puts by itself.
      answer_prefix: None to put none.

    Raises:
      BadInput: trace or answer is empty, or the template has no turn that can be continued.
    """
    turns = _example_turns(question, thinking, answer, id)
    return render_turns(turns, tokenizer, markers, id=id, system=system, answer_prefix=answer_prefix)


def text(
    question: str,
    thinking: str | Sequence[str],
    answer: str,
    tokenizer: Tokenizer,
    markers: Markers,
    *,
    id: str | None = None,
    system: str | None = None,
    answer_prefix: str | None = "Answer: ",
) -> str:
    """The text whose tokens `render` gives; upstream's column `text`. Arguments and errors as `render`."""
    turns = _with_system(_example_turns(question, thinking, answer, id), system)
    pieces = _pieces(turns, _Style(tokenizer, markers, answer_prefix), id or question_id(question))
    return "".join(prompt + "".join(part for part, _ in parts) for prompt, _, parts in pieces)


def _example_turns(question: str, thinking: str | Sequence[str], answer: str, id: str | None) -> tuple[ChatTurn, ...]:
    trace = thinking if isinstance(thinking, str) else "\n".join(thinking)
    for name, value in (("trace", trace), ("answer", answer)):
        if not value.strip():
            raise BadInput(f"row {id or question_id(question)!r}: the {name} is empty; fill it or drop the row")
    return ChatTurn("user", question), ChatTurn("assistant", answer, trace)


def render_turns(
    turns: Sequence[ChatTurn],
    tokenizer: Tokenizer,
    markers: Markers,
    *,
    id: str | None = None,
    system: str | None = None,
    answer_prefix: str | None = "Answer: ",
    train_on: TrainOn = "last",
) -> Row:
    """Tokens of a chat that ends with an assistant's turn. No turn is left out, nor is the thinking of earlier ones.

    Args:
      turns: contents of users are unchanged, answers and thinking are stripped.
      id: by default the hash of what stands before the last answer.
      system: a system turn for a chat without one, None for what the template puts by itself.
      answer_prefix: put before an answer behind thinking that lacks it; a turn without thinking is put as it is.
      train_on: which answers are in the loss; the tokens are the same.

    Raises:
      BadInput: another turn is the last, an answer is empty, or the template does not render the turns one after
        another, each assistant's going on from its generation prompt.
    """
    id = question_id(one_name(turns)) if id is None else id
    ids: list[int] = []
    spans = []
    for _, prompt_ids, parts in _pieces(_with_system(turns, system), _Style(tokenizer, markers, answer_prefix), id):
        ids += prompt_ids
        begin = len(ids)
        ids += tokenizer.encode_parts(parts)
        spans.append((begin, len(ids)))
    return _row(id, ids, spans, train_on)


def _row(id: str, ids: Sequence[int], spans: Sequence[tuple[int, int]], train_on: TrainOn) -> Row:
    """A row whose answers lie at `spans`, the last of them at its end."""
    trained = spans if train_on == "all" else spans[-1:]
    between = zip((end for _, end in trained), (begin for begin, _ in trained[1:]), strict=False)
    return Row(id, tuple(ids), trained[0][0], tuple(between))


def render_row(
    row: Mapping[str, Any],
    tokenizer: Tokenizer,
    markers: Markers,
    *,
    where: str = "row",
    teacher: str = "",
    system: str | None = None,
    answer_prefix: str | None = "Answer: ",
    train_on: TrainOn = "last",
    format: str | None = None,
) -> Row:
    """Tokens of a data set's row, read as the first of `formats.FORMATS` whose columns it has, or as `format`.

    A row with only `text` is taken apart again. If the parts render to the same text, their contents are plain text
    as in `render`; if not (another system turn, other headers, several turns), the whole is encoded with its added
    tokens parsed, as upstream does, and the loss is on what assistants say.

    Raises:
      BadInput: as `formats.format_of`, its reader and `render_turns`; `text` holds no generation prompt.
    """
    id = str(row["id"]) if isinstance(row, Mapping) and row.get("id") is not None else None
    name = format_of(row, where, format, teacher)
    options: Any = {"id": id, "system": system, "answer_prefix": answer_prefix}
    if name == "text":
        return _render_text(row["text"], tokenizer, markers, where, options, train_on)
    turns = read_row(row, where, name, teacher)
    try:
        return render_turns(turns, tokenizer, markers, train_on=train_on, **options)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None


def columns(row: Mapping[str, Any], *, where: str = "row", teacher: str = "") -> Example:
    """Question, trace and answer of a row of ours (`thinking`, `answer`), of s1K or of s1K-1.1.

    Args:
      where: names the row in errors.
      teacher: `deepseek` or `gemini` where a row has both; by default ours, s1K's, then DeepSeek's.

    Raises:
      BadInput: no question, trace or answer, or not text.
    """
    asked, answered = read_trace(row, where, teacher)
    return Example(asked.content, answered.thinking or "", answered.content)


def _with_system(turns: Sequence[ChatTurn], system: str | None) -> tuple[ChatTurn, ...]:
    has_own = any(turn.role == "system" for turn in turns)
    return tuple(turns) if system is None or has_own else (ChatTurn("system", system), *turns)


def _pieces(
    turns: Sequence[ChatTurn], style: _Style, id: str
) -> Iterator[tuple[str, list[int], list[tuple[str, bool]]]]:
    """For each assistant's turn: text and tokens of what stands before it, and its own parts `(text, markup)`."""
    if turns[-1].role != "assistant" or len(turns) < 2:
        wrong = "is the only one, so nothing asks for it" if len(turns) < 2 else f"is the {turns[-1].role}'s"
        raise BadInput(
            f"row {id!r}: the last turn {wrong}; a row is trained on an answer at its end: add the missing turn or "
            "remove that one"
        )
    cut = _unused("".join(turn.content for turn in turns))
    is_answer = [turn.role == "assistant" for turn in turns]
    messages = [
        {"role": turn.role, "content": cut if answers else turn.content}
        for turn, answers in zip(turns, is_answer, strict=True)
    ]
    header, _ = _headers(style.markers)
    end, opening = _turn_end(style.tokenizer, messages, header, cut)
    prompts = style.tokenizer.chat_pieces(messages[:-1], cut + end)
    answers = [turn for turn in turns if turn.role == "assistant"]
    if len(prompts) != len(answers) or not all(text.endswith(opening) for text, _ in prompts[:-1]):
        raise BadInput(
            f"row {id!r}: the chat template does not render its {len(answers)} assistant turns one after another, each "
            f"between {opening!r} and {end!r}; train on rows of one answer, or give a template that does "
            "(chat_template=...)"
        )
    for (prompt, ids), turn in zip(prompts, answers, strict=True):
        # Some thinking models' templates end the generation prompt with the think header.
        yield prompt, ids, _answer_parts(turn, style, prompt.endswith(header), end, id)


def _unused(text: str) -> str:
    """A private-use character that `text` does not hold; from the end, since `Marks` takes the first."""
    return next(char for char in map(chr, range(0xF8FF, 0xDFFF, -1)) if char not in text)


def _answer_parts(turn: ChatTurn, style: _Style, is_open: bool, end: str, id: str) -> list[tuple[str, bool]]:
    """What follows a generation prompt. An empty block is what `control.thinking=false` puts before an answer."""
    thinking, answer = (turn.thinking or "").strip(), turn.content.strip()
    if not answer:
        raise BadInput(f"row {id!r}: the answer is empty; fill it or drop the row")
    if thinking and style.answer_prefix and style.answer_prefix.strip() not in answer:
        answer = style.answer_prefix + answer
    rest = [(answer, False), (end, True)]
    if turn.thinking is None and not is_open:
        return rest
    header, middle = _headers(style.markers)
    is_replaced = any(style.markers.answer_start.startswith(each) for each in style.markers.thinking_end)
    if not thinking and is_replaced and not is_open:
        return [(middle.lstrip("\n"), True), *rest]
    return [*([] if is_open else [(header, True)]), *([(thinking, False)] if thinking else []), (middle, True), *rest]


def _headers(markers: Markers) -> tuple[str, str]:
    """Think and answer header with the newlines around them; markers that bring their own newlines keep them."""
    start, middle = markers.thinking_start, markers.answer_start
    header = start if start.endswith("\n") else start + "\n"
    middle = middle if middle.startswith("\n") else "\n" + middle
    return header, middle if middle.endswith("\n") else middle + "\n"


def _turn_end(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], header: str, cut: str) -> tuple[str, str]:
    """What the template puts after an assistant's turn (`<|im_end|>\\n`) and before it, of the last message."""
    asked = messages[:-1]
    prompt = tokenizer.chat_text(asked, generation_prompt=True).removesuffix(header)
    plain = tokenizer.chat_text(asked, generation_prompt=False)
    whole = tokenizer.chat_text(messages, generation_prompt=False)
    before, found, after = whole.rpartition(cut)
    if not found or not before.startswith(prompt):
        raise BadInput(
            f"the chat template renders an assistant turn as {whole[-60:]!r}, which does not go on from its generation "
            f"prompt {prompt[-40:]!r}; give a template in which it does (chat_template=...)"
        )
    return after, prompt[len(plain) :] if prompt.startswith(plain) else ""


def _render_text(
    body: Any, tokenizer: Tokenizer, markers: Markers, where: str, options: Mapping[str, Any], train_on: TrainOn
) -> Row:
    if not isinstance(body, str):
        raise BadInput(f"{where}: column 'text' is {type(body).__name__}, not text; fill it or drop the row")
    cut = _unused(body)
    turns = _with_system((ChatTurn("user", cut),), options["system"])
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    begin, _, end = tokenizer.chat_text(messages, generation_prompt=True).partition(cut)
    head, separator, completion = body.partition(end)
    if not separator:
        raise BadInput(f"{where}: column 'text' holds no {end!r}, so no assistant turn; check the tokenizer")
    header, middle = _headers(markers)
    turn_end, _ = _turn_end(tokenizer, [*messages, {"role": "assistant", "content": cut}], header, cut)
    if end in completion:
        return _render_chat(body, end, turn_end, tokenizer, where, options["id"], train_on)
    thinking, _, rest = completion.removeprefix(header).partition(middle)
    parts = (head.removeprefix(begin), thinking, rest.removesuffix(turn_end))
    if all(map(str.strip, parts)) and text(*parts, tokenizer, markers, **options) == body:
        return render(*parts, tokenizer, markers, **options)
    prompt_ids = tokenizer.encode_markup(head + separator)
    ids = (*prompt_ids, *tokenizer.encode_markup(completion))
    return Row(options["id"] or question_id(body), ids, len(prompt_ids))


def _render_chat(
    body: str, prompt: str, turn_end: str, tokenizer: Tokenizer, where: str, id: str | None, train_on: TrainOn
) -> Row:
    """A rendered chat of several answers: each goes from behind its generation prompt through the end of its turn."""
    head, *rest = body.split(prompt)
    ids, spans, before = [], [], head + prompt
    for number, piece in enumerate(rest, 1):
        answer, found, after = piece.partition(turn_end)
        is_last = number == len(rest)
        if (not found and not is_last) or (is_last and after.strip()):
            raise BadInput(
                f"{where}: answer {number} of column 'text' does not end with {turn_end!r} at the end of its turn; end "
                "the row with an answer, and every turn as the tokenizer's template does"
            )
        ids += tokenizer.encode_markup(before)
        begin = len(ids)
        ids += tokenizer.encode_markup(answer + found + (after if is_last else ""))
        spans.append((begin, len(ids)))
        before = after + prompt
    return _row(id or question_id(body), ids, spans, train_on)
