"""What is asked of an engine, what it remembers of a row on the host, and how a row becomes a `Completion`."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from s1jax.config import BadInput
from s1jax.engine import sampling
from s1jax.engine.protocol import RUN, Account, Automaton
from s1jax.engine.sampling import SamplingConfig
from s1jax.engine.stop import StopFinder
from s1jax.records import Completion
from s1jax.text.tokens import Tokenizer


@dataclasses.dataclass(frozen=True)
class Request:
    """One row to complete.

    Attributes:
      id, sample, seed: name the row; its draws depend on these three and the position alone.
      prompt_ids: tokens of the prompt, the control's header (`Control.header`) included.
      control: `Settings` from `Control.admit`, for this prompt's length and the engine's `max_length`.
      sampling: its `n` and `max_new_tokens` are not read here: the caller submits n requests, and `control.room` bounds
        the length.
    """

    id: str
    sample: int
    seed: int
    prompt_ids: tuple[int, ...]
    control: Any
    sampling: SamplingConfig = SamplingConfig()

    @property
    def name(self) -> str:
        """For errors."""
        return f"request {self.id!r} sample {self.sample}"


@dataclasses.dataclass(frozen=True)
class SlotIndex:
    """One slot: its length class and its index there."""

    of_class: int
    slot: int


@dataclasses.dataclass(frozen=True)
class Listener:
    """Who hears of a row; called in the thread that works, between two windows, and soon done.

    Attributes:
      done: gets the ticket and the completion, exactly once; `finish_reason` may be `cancelled` or `error`.
      paused: gets the ticket each time the row pauses; it may fork, snapshot, extend, resume or cancel it.
      progress: after each window, gets the ticket, the tokens after the prompt, which of them were forced, and how many
        are thinking. Nothing beyond a stop text is shown; the last tokens can be taken back later.
    """

    done: Callable[[int, Completion], None] | None = None
    paused: Callable[[int], None] | None = None
    progress: Callable[[int, list[int], list[bool], int], None] | None = None


def check(request: Request, tokenizer: Tokenizer, max_length: int) -> None:
    """Raises BadInput for a request that the engine cannot run."""
    name = request.name
    for field, kind in (("id", str), ("sample", int), ("seed", int), ("prompt_ids", tuple)):
        if not isinstance(getattr(request, field), kind) or isinstance(getattr(request, field), bool):
            raise BadInput(f"{name}: {field} is {getattr(request, field)!r}; give a {kind.__name__}")
    sampling.check(request.sampling)
    for text in (request.id, *request.sampling.stop):
        if not text.isprintable() and any("\ud800" <= char <= "\udfff" for char in text):
            raise BadInput(f"{name}: {text!r} holds half a character (a lone surrogate), which is no text")
    length = len(request.prompt_ids)
    if not length:
        raise BadInput(f"{name} has an empty prompt; give at least one token")
    if length + max(request.control.room, 1) > max_length:
        raise BadInput(
            f"{name}: {length} tokens of prompt and {request.control.room} more are above engine.max_length="
            f"{max_length}; shorten the prompt, ask for less, or raise engine.max_length"
        )
    check_tokens(request.prompt_ids, tokenizer, name)


def check_tokens(token_ids: Sequence[int], tokenizer: Tokenizer, name: str) -> None:
    """Raises BadInput for a token that the tokenizer does not have."""
    wrong = [token for token in token_ids if not isinstance(token, int | np.integer) or not 0 <= token < tokenizer.size]
    if wrong:
        raise BadInput(
            f"{name} has the token {wrong[0]!r}, the tokenizer has tokens 0 to {tokenizer.size - 1}; encode it anew"
        )


def sampling_params(request: Request) -> sampling.SamplingParams:
    """Sampling parameters and key of one request, leading axis 1."""
    return sampling.rows([request.sampling], [sampling.row_key(request.seed, request.id, request.sample)])


@dataclasses.dataclass
class HostRow:
    """The host's mirror of one row in a slot.

    Attributes:
      ticket: what `submit` returned.
      request, listener: what runs, and who hears of it.
      place: where it is.
      since: number of the first window that it is part of.
      ids, forced, logprobs: by position, prompt included.
      status: as last reported.
      finder: of its stop texts; None without any.
      is_cancelled: it ends with the next window that is read.
    """

    ticket: int
    request: Request
    listener: Listener
    place: SlotIndex
    since: int
    ids: list[int]
    forced: list[bool]
    logprobs: list[float]
    status: int = RUN
    finder: StopFinder | None = None
    is_cancelled: bool = False

    @property
    def n_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_ids)

    @property
    def token_ids(self) -> list[int]:
        """Tokens after the prompt."""
        return self.ids[self.n_prompt :]

    @property
    def forced_after_prompt(self) -> list[bool]:
        """Which of `token_ids` were put there."""
        return self.forced[self.n_prompt :]

    def update(self, low: int, length: int, tokens: np.ndarray, forced: np.ndarray, logprobs: np.ndarray) -> None:
        """Take over what a window changed: everything from position `low` on."""
        for mine, new in ((self.ids, tokens), (self.forced, forced), (self.logprobs, logprobs)):
            del mine[low:]
            mine.extend(new[: length - low].tolist())
        if self.finder is not None:
            self.finder.update(low - self.n_prompt, self.ids[low:])


def follow_stops(row: HostRow, tokenizer: Tokenizer) -> HostRow:
    """The row, with a finder of its stop texts that has read what is there."""
    if row.request.sampling.stop:
        row.finder = StopFinder(tokenizer.token_bytes(), row.request.sampling.stop)
        row.finder.update(0, row.token_ids)
    return row


def stop_of(row: HostRow, automaton: Automaton, state_row: Any) -> tuple[int, int] | None:
    """The stop text that ends the row: `StopFinder.first` in the drawn answer."""
    if row.finder is None or not row.finder.has_match:
        return None
    account = automaton.account(state_row, row.token_ids, row.forced_after_prompt)
    return row.finder.first(account.answer_offset)


def complete(row: HostRow, automaton: Automaton, state_row: Any, tokenizer: Tokenizer) -> Completion:
    """The `Completion` of a finished row, of one that a stop text ends, or of one that was cancelled.

    Every step of an answer keeps one token, so the steps up to a stop text follow from how many tokens are cut.
    """
    token_ids, forced = row.token_ids, row.forced_after_prompt
    match = None if row.is_cancelled else stop_of(row, automaton, state_row)
    account = automaton.account(state_row, token_ids, forced)
    finish, steps, text = account.finish_reason, account.steps, tokenizer.decode(token_ids)
    if match is not None and row.finder is not None:
        kept, n_ids = match[0], len(token_ids)
        text = row.finder.text_before(match[1]).decode("utf-8", errors="replace")
        token_ids, forced = token_ids[:kept], forced[:kept]
        account = automaton.account(state_row, token_ids, forced)
        finish, steps = "stop", steps - (n_ids - kept)
    if row.is_cancelled:
        finish = "cancelled"
    account = dataclasses.replace(account, finish_reason=finish or "length", steps=steps)
    return _completion(row, account, token_ids, forced, text)


def failed(row: HostRow, error: BaseException) -> Completion:
    """The `Completion` of a row that an error ended: its tokens so far, and the error."""
    nothing = Account(0, 0, 0, 0, None, "error")
    completion = _completion(row, nothing, row.token_ids, row.forced_after_prompt, "")
    return dataclasses.replace(completion, error=f"{type(error).__name__}: {error}")


def unbegun(request: Request, error: BaseException | None = None) -> Completion:
    """The `Completion` of a request that was cancelled, or that failed, before it had a row."""
    row = HostRow(0, request, Listener(), SlotIndex(0, 0), 0, list(request.prompt_ids), [], [])
    if error is not None:
        return failed(row, error)
    return _completion(row, Account(0, 0, 0, 0, None, "cancelled"), [], [], "")


def _completion(
    row: HostRow, account: Account, token_ids: Sequence[int], forced: Sequence[bool], text: str
) -> Completion:
    request = row.request
    logprobs = row.logprobs[row.n_prompt :][: len(token_ids)]
    return Completion(
        id=request.id,
        sample=request.sample,
        seed=request.seed,
        prompt_ids=tuple(request.prompt_ids),
        token_ids=tuple(token_ids),
        forced=tuple(forced),
        thinking_tokens=account.thinking_tokens,
        answer_offset=account.answer_offset,
        answer_tokens=account.answer_tokens,
        steps=account.steps,
        thinking_finish_reason=account.thinking_finish_reason,
        finish_reason=account.finish_reason or "length",
        text=text,
        logprobs=tuple(logprobs) if request.sampling.logprobs else None,
        extra=dict(account.extra),
    )


def has_unknown(logprobs: Sequence[float]) -> bool:
    """Some log-probability could not be known on the way (see `DeviceRows.logprob_BS`)."""
    return any(math.isnan(x) for x in logprobs)
