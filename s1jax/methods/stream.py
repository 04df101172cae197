"""One completion on the terminal while it is written: thinking dimmed, tokens that the control put marked."""

import codecs
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from s1jax import control as controls
from s1jax.methods.task import Ask
from s1jax.records import Completion
from s1jax.text.tokens import Tokenizer

FORCED = "bold yellow"


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some text of a completion, in the order it was written.

    Attributes:
      text: whole characters.
      is_thinking: it is thinking.
      is_forced: the control put it there; a character counts to the token that begins it.
    """

    text: str
    is_thinking: bool
    is_forced: bool


class Pieces:
    """Cuts a row that grows into pieces. What its control may still take back is not shown yet."""

    def __init__(self, tokenizer: Tokenizer, control: Any) -> None:
        self._may_rewind = controls.of(control).may_rewind(control)
        self._token_bytes = tokenizer.token_bytes()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._n_shown, self._mark = 0, (False, False)

    def grown(self, ids: Sequence[int], forced: Sequence[bool], thinking: int) -> list[Piece]:
        """What is new, but for what may be taken back and a character that is not whole yet."""
        end, held = len(ids), 0
        while end > self._n_shown and held < self._may_rewind:
            end -= 1
            held += len(self._token_bytes[ids[end]])
        return list(self._pieces(ids, forced, thinking, max(end, self._n_shown)))

    def ended(self, completion: Completion) -> list[Piece]:
        """The rest of a row that is over, up to where its text ends (a stop text is not shown)."""
        n = len(completion.token_ids)
        pieces = list(self._pieces(completion.token_ids, completion.forced, completion.thinking_tokens, n))
        rest = self._decoder.decode(b"", final=True)
        pieces += [Piece(rest, *self._mark)] if rest else []
        shown = len("".join(piece.text for piece in pieces))
        whole = b"".join(self._token_bytes[token] for token in completion.token_ids).decode("utf-8", errors="replace")
        return _cut(pieces, shown - max(len(whole) - len(completion.text), 0))

    def _pieces(self, ids: Sequence[int], forced: Sequence[bool], thinking: int, end: int) -> Iterator[Piece]:
        text, mark = "", self._mark
        for i in range(self._n_shown, end):
            is_inside = bool(self._decoder.getstate()[0])  # in the middle of a character
            own = (i < thinking, bool(forced[i]))
            if own != mark and not is_inside:
                if text:
                    yield Piece(text, *mark)
                text, mark = "", own
            text += self._decoder.decode(self._token_bytes[ids[i]])
        if text:
            yield Piece(text, *mark)
        self._n_shown, self._mark = end, mark


def _cut(pieces: Sequence[Piece], n: int) -> list[Piece]:
    """The first `n` characters."""
    kept = []
    for piece in pieces:
        if n <= 0:
            break
        kept.append(dataclasses.replace(piece, text=piece.text[:n]))
        n -= len(piece.text)
    return kept


class Stream:
    """Shows one row under a control."""

    def __init__(self, tokenizer: Tokenizer, control: Any, console: Console | None = None) -> None:
        self._pieces = Pieces(tokenizer, control)
        self._console = console or Console(highlight=False)

    def show(self, _: Ask | None, ids: Sequence[int], forced: Sequence[bool], thinking: int) -> None:
        """What has been added since the last call."""
        self._print(self._pieces.grown(ids, forced, thinking))

    def finish(self, completion: Completion) -> None:
        """The rest, and one line of account."""
        self._print(self._pieces.ended(completion))
        reason = completion.thinking_finish_reason
        thought = f"{completion.thinking_tokens} tokens of thinking" + (f", ended by {reason}" if reason else "")
        n_ignored = completion.extra.get("n_ignored")
        ignored = f", {n_ignored} ends ignored" if n_ignored else ""
        answered = f"{completion.answer_tokens} tokens of answer, {completion.finish_reason}"
        self._console.print(f"\n[{thought}{ignored}; {answered}]", style="dim", markup=False)

    def _print(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            style = FORCED if piece.is_forced else "dim" if piece.is_thinking else ""
            text = (
                piece.text.replace("\x1b", "\u241b") if self._console.is_terminal else piece.text
            )  # no commands to it
            self._console.print(text, style=style, end="", markup=False, soft_wrap=True)


class Shown:
    """Shows all completions of a prompt: a single one while it is written, several one after another as they end."""

    def __init__(self, tokenizer: Tokenizer, control: Any, n: int, console: Console | None = None) -> None:
        self._tokenizer, self._control, self._n = tokenizer, control, n
        self._console = console or Console(highlight=False)
        self._stream = Stream(tokenizer, control, self._console)
        self._ended: dict[int, Completion] = {}
        self._n_shown = 0

    def show(self, ask: Ask, ids: Sequence[int], forced: Sequence[bool], thinking: int) -> None:
        """What has been added to a single one."""
        if self._n == 1:
            self._stream.show(ask, ids, forced, thinking)

    def finish(self, completion: Completion) -> None:
        """One that has ended; it is shown when all before it are."""
        self._ended[completion.sample] = completion
        while self._n_shown in self._ended:
            if self._n > 1:
                self._console.print(f"--- {self._n_shown + 1} of {self._n}", style="bold", markup=False)
                self._stream = Stream(self._tokenizer, self._control, self._console)
            self._stream.finish(self._ended[self._n_shown])
            self._n_shown += 1
