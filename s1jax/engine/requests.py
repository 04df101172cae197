"""What is asked of an engine, what it remembers of a row on the host, and how a finished row becomes a `Completion`."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from s1jax.config import BadInput
from s1jax.engine import sampling
from s1jax.engine.protocol import RUN, Account, Control, ControlRow
from s1jax.engine.sampling import SamplingConfig
from s1jax.engine.state import Place, Row
from s1jax.records import Completion
from s1jax.text.tokens import Tokenizer


@dataclasses.dataclass(frozen=True)
class Request:
    """One row to complete.

    Attributes:
      id, sample, seed: name the row; its draws depend on these three and the position alone.
      prompt_ids: ids of the prompt, the control's header (`control.header_ids`) included.
      control: from `admission.admit`, for this prompt's length and the engine's `max_length`.
      sampling: its `n` and `max_new_tokens` are not read here: the caller submits n requests, and `control.room` bounds
        the length.
    """

    id: str
    sample: int
    seed: int
    prompt_ids: tuple[int, ...]
    control: ControlRow
    sampling: SamplingConfig = SamplingConfig()


def check(request: Request, tokenizer: Tokenizer, max_length: int) -> None:
    """Raises BadInput for a request that the engine cannot run."""
    name, length = f"request {request.id!r} sample {request.sample}", len(request.prompt_ids)
    sampling.check(request.sampling)
    if not length:
        raise BadInput(f"{name} has an empty prompt; give at least one id")
    if length + max(request.control.room, 1) > max_length:
        raise BadInput(
            f"{name}: {length} ids of prompt and {request.control.room} more are above engine.max_length={max_length}; "
            "shorten the prompt, ask for less, or raise engine.max_length"
        )
    wrong = [id for id in request.prompt_ids if not 0 <= id < tokenizer.size]
    if wrong:
        raise BadInput(f"{name} has the id {wrong[0]}, the tokenizer has ids 0 to {tokenizer.size - 1}; encode it anew")


def initial_row(request: Request, control_state: Any, max_length: int) -> Row:
    """The row's arrays as it enters a slot, leading axis 1. `control_state` has that axis too."""
    tokens_BS = np.zeros((1, max_length), np.int32)
    tokens_BS[0, : len(request.prompt_ids)] = request.prompt_ids
    return Row(
        tokens_BS=tokens_BS,  # pyright: ignore[reportArgumentType]
        forced_BS=np.zeros((1, max_length), bool),  # pyright: ignore[reportArgumentType]
        logprob_BS=np.zeros((1, max_length), np.float32),  # pyright: ignore[reportArgumentType]
        length_B=np.array([len(request.prompt_ids)], np.int32),  # pyright: ignore[reportArgumentType]
        status_B=np.array([RUN], np.int32),  # pyright: ignore[reportArgumentType]
        control=control_state,
        draw=draw_of(request),
    )


def draw_of(request: Request) -> sampling.Draw:
    """Sampling parameters and key of one request, leading axis 1."""
    return sampling.rows([request.sampling], [sampling.row_key(request.seed, request.id, request.sample)])


@dataclasses.dataclass
class Seat:
    """The host's mirror of one row in a slot; the only thing here that changes in place.

    Attributes:
      ticket: what `submit` returned.
      request: what runs.
      place: where it is.
      since: number of the first window that it is part of.
      ids, forced, logprobs: by position, prompt included.
      n_added: ids that were appended from outside, of which its control does not know.
      status: as last reported.
    """

    ticket: int
    request: Request
    place: Place
    since: int
    ids: list[int]
    forced: list[bool]
    logprobs: list[float]
    n_added: int = 0
    status: int = RUN

    @property
    def token_ids(self) -> list[int]:
        """Ids after the prompt."""
        return self.ids[len(self.request.prompt_ids) :]

    def update(self, low: int, length: int, tokens: np.ndarray, forced: np.ndarray, logprobs: np.ndarray) -> None:
        """Take over what a window changed: everything from position `low` on."""
        for mine, new in ((self.ids, tokens), (self.forced, forced), (self.logprobs, logprobs)):
            del mine[low:]
            mine.extend(new[: length - low].tolist())


def find_stop(token_bytes: Sequence[bytes], ids: Sequence[int], stops: Sequence[str]) -> tuple[int, int] | None:
    """The stop text completed first in the text of `ids`: how many ids complete it, and how many bytes lie before it.

    Of several completed by the same id the one that begins first counts. None if there is none.
    """
    pieces = [token_bytes[id] for id in ids]
    text, best = b"".join(pieces), None
    for stop in stops:
        begin = text.find(stop.encode())
        if begin >= 0:
            end, count, size = begin + len(stop.encode()), 0, 0
            while size < end:
                size += len(pieces[count])
                count += 1
            best = min(best or (count, begin), (count, begin))
    return best


def complete(seat: Seat, control: Control, state_row: Any, tokenizer: Tokenizer) -> Completion:
    """The `Completion` of a finished row, or of one that a stop text ends.

    Every step of an answer keeps one id, so the steps up to a stop text follow from how many ids are cut.
    """
    request, token_ids = seat.request, seat.token_ids
    prompt, forced = len(request.prompt_ids), seat.forced[len(request.prompt_ids) :]
    account = control.account(state_row, token_ids, forced)
    finish, steps, text = account.finish_reason, account.steps, tokenizer.decode(token_ids)
    match = stop_of(seat, tokenizer, account.answer_offset)
    if match is not None:
        kept, n_ids = account.answer_offset + match[0], len(token_ids)
        pieces = [tokenizer.token_bytes()[id] for id in token_ids]
        before, answer = b"".join(pieces[: account.answer_offset]), b"".join(pieces[account.answer_offset :])
        text = (before + answer[: match[1]]).decode("utf-8", errors="replace")
        token_ids, forced = token_ids[:kept], forced[:kept]
        account = control.account(state_row, token_ids, forced)
        finish, steps = "stop", steps - (n_ids - kept)
    _assert_within(request.control, account)
    logprobs = seat.logprobs[prompt : prompt + len(token_ids)]
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
        n_ignored=account.n_ignored,
        steps=steps,
        thinking_finish_reason=account.thinking_finish_reason,
        finish_reason=finish or "length",
        reopened=account.reopened,
        text=text,
        logprobs=tuple(logprobs) if request.sampling.logprobs else None,
        loop_at=account.loop_at,
    )


def _assert_within(row: ControlRow, account: Account) -> None:
    """A budget that was exceeded is a fault of the automaton, never of the model: nothing of it may reach a file."""
    if row.is_thinking and row.algorithm == "s1jax":
        assert account.thinking_tokens <= row.budget, f"{account.thinking_tokens} ids of thinking, budget {row.budget}"
    if row.answer_budget is not None:
        assert account.answer_tokens <= row.answer_budget, f"{account.answer_tokens} ids, budget {row.answer_budget}"


def stop_of(seat: Seat, tokenizer: Tokenizer, answer_offset: int) -> tuple[int, int] | None:
    """`find_stop` in the drawn answer."""
    if not seat.request.sampling.stop:
        return None
    return find_stop(tokenizer.token_bytes(), seat.token_ids[answer_offset:], seat.request.sampling.stop)


def has_unknown(logprobs: Sequence[float]) -> bool:
    """Some log-probability could not be known on the way (see `Row.logprob_BS`)."""
    return any(math.isnan(x) for x in logprobs)
