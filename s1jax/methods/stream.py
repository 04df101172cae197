"""One completion on the terminal while it is written: thinking dimmed, ids that the control put marked."""

import itertools
from collections.abc import Sequence

from rich.console import Console

from s1jax.control.config import ControlConfig
from s1jax.engine.requests import Request
from s1jax.records import Completion
from s1jax.text.tokens import Tokenizer

FORCED = "bold yellow"
# Ids that may still be taken back: a half delimiter.
HELD_BACK = 8


class Stream:
    """Shows one row. Ids at the end are held back while they can still be taken back."""

    def __init__(self, tokenizer: Tokenizer, control: ControlConfig, console: Console | None = None) -> None:
        self._tokenizer, self._control = tokenizer, control
        self._console = console or Console(highlight=False)
        self._shown: list[int] = []

    def show(self, request: Request, ids: Sequence[int], forced: Sequence[bool]) -> None:
        """What has been added since the last call, but for the last few ids and a character that is not whole yet."""
        end = max(len(ids) - HELD_BACK, len(self._shown))
        while end > len(self._shown) and self._tokenizer.decode(ids[len(self._shown) : end]).endswith("\ufffd"):
            end -= 1
        self._print(list(ids)[:end], forced)

    def finish(self, completion: Completion) -> None:
        """The rest, and one line of account."""
        self._print(list(completion.token_ids), completion.forced)
        reason = completion.thinking_finish_reason
        thought = f"{completion.thinking_tokens} ids of thinking" + (f", ended by {reason}" if reason else "")
        ignored = f", {completion.n_ignored} ends ignored" if completion.n_ignored else ""
        answered = f"{completion.answer_tokens} ids of answer, {completion.finish_reason}"
        self._console.print(f"\n[{thought}{ignored}; {answered}]", style="dim", markup=False)

    def _print(self, ids: list[int], forced: Sequence[bool]) -> None:
        end = self._end_of_thinking(ids)
        styles = [FORCED if is_forced else "dim" if i < end else "" for i, is_forced in enumerate(forced[: len(ids)])]
        new = range(len(self._shown), len(ids))
        for style, group in itertools.groupby(new, key=lambda i: styles[i]):
            text = self._tokenizer.decode([ids[i] for i in group])
            self._console.print(text, style=style, end="", markup=False, soft_wrap=True)
        self._shown.extend(ids[i] for i in new)

    def _end_of_thinking(self, ids: Sequence[int]) -> int:
        """Index after the id that completes the first delimiter; an ignored one was taken back and is not there."""
        if not self._control.is_thinking:
            return 0
        table, text = self._tokenizer.token_bytes(), b""
        ends = [delimiter.encode() for delimiter in self._control.markers.thinking_end]
        for i, id in enumerate(ids):
            text += table[id]
            if id in self._tokenizer.eos_ids or any(end in text[-len(end) - len(table[id]) :] for end in ends):
                return i + 1
        return len(ids)
