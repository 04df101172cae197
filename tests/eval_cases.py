"""A byte tokenizer in a folder and an engine that answers from a script: evaluation without a model."""

import dataclasses
import pathlib
from collections.abc import Callable

import tokenizers

from s1jax.engine.requests import Listener, Request
from s1jax.engine.worker import Worker
from s1jax.methods.config import ModelRun
from s1jax.methods.session import Session
from s1jax.records import Completion
from s1jax.text.tokens import Tokenizer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def tokenizer_folder(path: pathlib.Path) -> str:
    """Every byte is an id; three more are the special tokens of the chat format."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(SPECIALS)
    Tokenizer(backend, settings={"eos_token": "<|im_end|>", "chat_template": TEMPLATE}).save(path)
    return str(path)


class ScriptedEngine(Worker):
    """Writes what `script(request)` says, (thinking, answer), under the row's budget; one row a round, the last first.

    Args:
      dies_after: computed rows after which it raises KeyboardInterrupt.
    """

    def __init__(
        self, tokenizer: Tokenizer, script: Callable[[Request], tuple[str, str]], *, dies_after: int = 10**9
    ) -> None:
        super().__init__()
        self.max_length, self.vocab_size = 2000, tokenizer.size
        self.n_done = self.n_forks = 0
        self.seen: list[Request] = []
        self._queue: list[tuple[int, Request, Listener]] = []
        self._tokenizer, self._script, self._dies_after = tokenizer, script, dies_after

    def submit(self, request: Request, listener: Listener) -> int:
        ticket = len(self.seen)
        self.seen.append(request)
        if self.has_turn:
            self._queue.append((ticket, request, listener))
        else:
            self.post(lambda: self._queue.append((ticket, request, listener)))
        return ticket

    def cancel(self, ticket: int) -> None:
        self._queue = [entry for entry in self._queue if entry[0] != ticket]

    def cancel_all(self) -> None:
        self._queue = []

    def set_controls(self, controls) -> None:
        """It has no tables."""

    def fail(self, error: BaseException) -> None:
        for ticket, request, listener in self._queue:
            listener.done(ticket, dataclasses.replace(self._complete(request), finish_reason="error", error=str(error)))

    def advance(self) -> bool:
        if not self._queue:
            return False
        if self.n_done == self._dies_after:
            raise KeyboardInterrupt
        ticket, request, listener = self._queue.pop()
        n_thought = len(self._tokenizer.encode(self._script(request)[0]))
        for threshold in request.control.pause_at:
            if n_thought >= threshold:
                listener.paused(ticket)
        done = self._complete(request)
        if listener.progress is not None:
            for n in range(5, len(done.token_ids), 5):
                listener.progress(ticket, list(done.token_ids[:n]), list(done.forced[:n]), min(n, done.thinking_tokens))
        listener.done(ticket, done)
        self.n_done += 1
        return True

    def fork(self, ticket: int, forks, listener) -> list[int]:
        """Forks are written after their leader has ended."""
        tickets = [self.submit(request, listener) for request in forks]
        self.n_forks += len(tickets)
        return tickets

    def resume(self, ticket: int) -> None:
        """A paused row goes on by itself here."""

    def _complete(self, request: Request) -> Completion:
        row, (thinking, answer) = request.control, self._script(request)
        thought = self._tokenizer.encode(thinking)
        is_cut = row.is_thinking and len(thought) > row.budget
        thought = thought[: row.budget] if is_cut else thought
        closing = [*row.newline, *row.forced_end] if is_cut else list(row.answer_start)
        closing = closing if row.is_thinking else []
        thought = thought if row.is_thinking else []
        drawn = self._tokenizer.encode(answer)
        room = row.room - len(thought) - len(closing)
        finish = "stop" if len(drawn) < room else "length"
        ids = [*thought, *closing, *(drawn[:room] if finish == "length" else [*drawn, *self._tokenizer.eos_ids])]
        offset = len(thought) + len(closing)
        return Completion(
            id=request.id,
            sample=request.sample,
            seed=request.seed,
            prompt_ids=request.prompt_ids,
            token_ids=tuple(ids),
            forced=tuple(len(thought) <= i < offset for i in range(len(ids))),
            thinking_tokens=len(thought),
            answer_offset=offset,
            answer_tokens=len(ids) - offset - (finish == "stop"),
            steps=len(ids),
            thinking_finish_reason=("budget" if is_cut else "natural") if row.is_thinking else None,
            finish_reason=finish,
            text=self._tokenizer.decode(ids),
            extra={"n_ignored": row.n_ignore, "reopened": False, "loop_at": None},
        )


def session(config: ModelRun, script: Callable[[Request], tuple[str, str]], **fields) -> tuple[Session, list]:
    """A session over scripted engines, and the list of engines that it makes."""
    engines: list[ScriptedEngine] = []

    def make(_, tokenizer, controls, most_rows):
        engines.append(ScriptedEngine(tokenizer, script, **fields))
        return engines[-1:]

    return Session(config, make), engines
