"""A question, a trace and an answer become one training example: text, ids, and where the loss begins. Pure; no JAX.

The format is upstream's (simplescaling/s1@77272c6 data/tokenization.py:18-34): one user turn with the question as it
is, one assistant turn with the trace under the think header and the answer under the answer header.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from s1jax.config import BadInput
from s1jax.records import question_id
from s1jax.text.tokens import Markers, Tokenizer

# Where known data sets keep (thinking, answer), by teacher: ours, s1K, s1K-1.1.
COLUMNS: dict[str, tuple[tuple[str, str], ...]] = {
    "": (
        ("thinking", "answer"),
        ("thinking_trajectories", "attempt"),
        ("deepseek_thinking_trajectory", "deepseek_attempt"),
    ),
    "deepseek": (("deepseek_thinking_trajectory", "deepseek_attempt"),),
    "gemini": (("gemini_thinking_trajectory", "gemini_attempt"), ("thinking_trajectories", "attempt")),
}
_ANSWER = "\ue000"


@dataclasses.dataclass(frozen=True)
class Row:
    """A rendered example. The loss is on `ids[prompt_length:]`: all after the generation prompt, header included."""

    id: str
    ids: tuple[int, ...]
    prompt_length: int


@dataclasses.dataclass(frozen=True)
class Example:
    """The three texts of an example, as the data set has them (not stripped); `thinking` is joined."""

    question: str
    thinking: str
    answer: str


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
    """Ids of one example. An added token spelled out in question, trace or answer stays plain text.

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
    id = question_id(question) if id is None else id
    example = Example(question, _joined(thinking), answer)
    prompt_ids = tokenizer.chat_ids(_messages(question, system), generation_prompt=True)
    parts = _completion(example, tokenizer, markers, id, system, answer_prefix)
    return Row(id, (*prompt_ids, *tokenizer.encode_parts(parts)), len(prompt_ids))


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
    """The text whose ids `render` gives; upstream's column `text`. Arguments and errors as `render`."""
    id = question_id(question) if id is None else id
    example = Example(question, _joined(thinking), answer)
    prompt = tokenizer.chat_text(_messages(question, system), generation_prompt=True)
    parts = _completion(example, tokenizer, markers, id, system, answer_prefix)
    return prompt + "".join(part for part, _ in parts)


def render_row(
    row: Mapping[str, Any],
    tokenizer: Tokenizer,
    markers: Markers,
    *,
    where: str = "row",
    teacher: str = "",
    system: str | None = None,
    answer_prefix: str | None = "Answer: ",
) -> Row:
    """Ids of a data set's row, by its columns (`columns`), or by `text` where it has no others.

    A row with only `text` is taken apart again. If the parts render to the same text, their contents are plain text
    as in `render`; if not (another system turn, other headers), the whole is encoded with its added tokens parsed, as
    upstream does, and the loss begins after the first generation prompt.

    Raises:
      BadInput: as `columns` and `render`; `text` holds no generation prompt.
    """
    id = str(row["id"]) if row.get("id") is not None else None
    options: Any = {"id": id, "system": system, "answer_prefix": answer_prefix}
    if isinstance(row.get("text"), str) and not any(pair[0] in row for pair in COLUMNS.get(teacher, ())):
        return _render_text(row["text"], tokenizer, markers, where, options)
    example = columns(row, where=where, teacher=teacher)
    return render(example.question, example.thinking, example.answer, tokenizer, markers, **options)


def columns(row: Mapping[str, Any], *, where: str = "row", teacher: str = "") -> Example:
    """Question, trace and answer of a row of ours (`thinking`, `answer`), of s1K or of s1K-1.1.

    Args:
      where: names the row in errors.
      teacher: `deepseek` or `gemini` where a row has both; by default ours, s1K's, then DeepSeek's.

    Raises:
      BadInput: no question, trace or answer, or not text.
    """
    if teacher not in COLUMNS:
        raise BadInput(f"teacher={teacher!r} is not known; use one of {', '.join(map(repr, COLUMNS))}")
    name = f"{where} (id {row['id']})" if row.get("id") is not None else where
    pairs = COLUMNS[teacher]
    thinking, answer = next((pair for pair in pairs if pair[0] in row), pairs[0])
    texts = {}
    for column in ("question", thinking, answer):
        value: Any = row.get(column)
        is_list = isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
        if isinstance(value, str) or (is_list and column == thinking):
            texts[column] = _joined(value)
        else:
            raise BadInput(
                f"{name}: column {column!r} is {type(value).__name__}, not text (columns: {', '.join(sorted(row))}); "
                "fill it, drop the row or name another teacher"
            )
        if not texts[column].strip():
            raise BadInput(f"{name}: column {column!r} is empty; fill it or drop the row")
    return Example(texts["question"], texts[thinking], texts[answer])


def _joined(thinking: str | Sequence[str]) -> str:
    return thinking if isinstance(thinking, str) else "\n".join(thinking)


def _messages(question: str, system: str | None) -> list[dict[str, str]]:
    turns = [{"role": "system", "content": system}] if system is not None else []
    return [*turns, {"role": "user", "content": question}]


def _completion(
    example: Example, tokenizer: Tokenizer, markers: Markers, id: str, system: str | None, answer_prefix: str | None
) -> list[tuple[str, bool]]:
    """What follows the generation prompt, as parts `(text, markup)`."""
    thinking, answer = example.thinking.strip(), example.answer.strip()
    for name, value in (("trace", thinking), ("answer", answer)):
        if not value:
            raise BadInput(f"row {id!r}: the {name} is empty; fill it or drop the row")
    if answer_prefix and answer_prefix.strip() not in answer:
        answer = answer_prefix + answer
    header, middle = _headers(markers)
    messages = _messages(example.question, system)
    # Some thinking models' templates end the generation prompt with the think header.
    is_open = tokenizer.chat_text(messages, generation_prompt=True).endswith(header)
    end = _turn_end(tokenizer, messages, header)
    parts = [(thinking, False), (middle, True), (answer, False), (end, True)]
    return parts if is_open else [(header, True), *parts]


def _headers(markers: Markers) -> tuple[str, str]:
    """Think and answer header with the newlines around them; markers that bring their own newlines keep them."""
    start, middle = markers.thinking_start, markers.answer_start
    header = start if start.endswith("\n") else start + "\n"
    middle = middle if middle.startswith("\n") else "\n" + middle
    return header, middle if middle.endswith("\n") else middle + "\n"


def _turn_end(tokenizer: Tokenizer, messages: list[dict[str, str]], header: str) -> str:
    """What the template puts after an assistant turn (`<|im_end|>\\n`)."""
    prompt = tokenizer.chat_text(messages, generation_prompt=True).removesuffix(header)
    turns = [*messages, {"role": "assistant", "content": _ANSWER}]
    whole = tokenizer.chat_text(turns, generation_prompt=False)
    before, found, after = whole.rpartition(_ANSWER)
    if not found or not before.startswith(prompt):
        raise BadInput(
            f"the chat template renders an assistant turn as {whole[-60:]!r}, which does not go on from its generation "
            f"prompt {prompt[-40:]!r}; give a template in which it does (chat_template=...)"
        )
    return after


def _render_text(body: str, tokenizer: Tokenizer, markers: Markers, where: str, options: Mapping[str, Any]) -> Row:
    messages = _messages(_ANSWER, options["system"])
    begin, _, end = tokenizer.chat_text(messages, generation_prompt=True).partition(_ANSWER)
    head, separator, completion = body.partition(end)
    if not separator:
        raise BadInput(f"{where}: column 'text' holds no {end!r}, so no assistant turn; check the tokenizer")
    header, middle = _headers(markers)
    thinking, _, rest = completion.removeprefix(header).partition(middle)
    parts = (head.removeprefix(begin), thinking, rest.removesuffix(_turn_end(tokenizer, messages, header)))
    if all(parts) and text(*parts, tokenizer, markers, **options) == body:
        return render(*parts, tokenizer, markers, **options)
    prompt_ids = tokenizer.encode_markup(head + separator)
    ids = (*prompt_ids, *tokenizer.encode_markup(completion))
    return Row(options["id"] or question_id(body), ids, len(prompt_ids))
