"""The account of one row, on the host, from its last state and its tokens."""

from collections.abc import Sequence

import numpy as np

from s1jax.control.budget.state import (
    CLOSE,
    FINISHES,
    FULL,
    LENGTH,
    LOOP,
    NATURAL,
    NO_REASON,
    REASONS,
    REPETITION,
    S1JAX,
    THINK,
    Limits,
    State,
)
from s1jax.control.matching import Matching
from s1jax.engine.protocol import Account


def account(
    matching: Matching,
    texts: Sequence[bytes],
    is_eos_V: np.ndarray,
    state: State,
    token_ids: Sequence[int],
    forced: Sequence[bool],
) -> Account:
    """What a row thought and answered.

    A `free` row that begins with the think header by itself is accounted like a controlled one, but its thinking
    includes the header.

    Args:
      texts: those of `matching`.
      is_eos_V: which ids are EOS.
      state: its last state, arrays without the axis B.
      token_ids, forced: its tokens after the prompt, and which of them were put there; the host may have cut both at a
        stop string.

    Raises:
      RuntimeError: the row has more tokens than it was given: a fault of the automaton, never of the model.
    """
    limits, progress = state.limits, state.progress
    phase, loop_at = int(progress.phase_B), int(progress.loop_at_B)
    if limits.is_free_B:
        thinking, offset, reason = _observe(matching, texts, is_eos_V, state, token_ids)
    elif phase in (THINK, CLOSE):
        thinking = len(token_ids) if phase == THINK else int(progress.thinking_B)
        offset, reason = len(token_ids), int(progress.reason_B)
    else:
        thinking, offset, reason = int(progress.thinking_B), int(progress.offset_B), int(progress.reason_B)
    answer = token_ids[offset:]
    n_put = sum(forced[offset:])  # put there from outside (`BudgetForcing.extend`): no drawn tokens
    is_stopped = len(answer) > 0 and not forced[-1] and bool(is_eos_V[answer[-1]])
    n_answer = len(answer) - n_put - is_stopped
    _check_limits(limits, thinking, n_answer)
    opens_J = np.asarray(limits.active_BJ) | np.asarray(limits.header_BJ)
    return Account(
        thinking_tokens=thinking,
        answer_offset=offset,
        answer_tokens=n_answer,
        steps=int(progress.steps_B),
        thinking_finish_reason=REASONS[reason],
        finish_reason=FINISHES[int(progress.finish_B)],
        extra={
            "n_ignored": int(progress.ignored_B),
            "reopened": any((rank_J[opens_J] > 0).any() for _, rank_J, _ in matching.events(answer)),
            "loop_at": loop_at if loop_at >= 0 else None,
        },
    )


def _check_limits(limits: Limits, thinking: int, n_answer: int) -> None:
    """Nothing of a row that broke its limits may reach a file."""
    budget, answer_budget = int(limits.budget_B), int(limits.answer_budget_B)
    if not limits.is_free_B and int(limits.algorithm_B) == S1JAX and thinking > budget:
        raise RuntimeError(f"{thinking} tokens of thinking, budget {budget}")
    if n_answer > answer_budget:
        raise RuntimeError(f"{n_answer} tokens of answer, budget {answer_budget}")


def _observe(
    matching: Matching, texts: Sequence[bytes], is_eos_V: np.ndarray, state: State, token_ids: Sequence[int]
) -> tuple[int, int, int]:
    """Thinking ids, answer offset and reason of a row that may have opened a think block as its first text."""
    active_J, header_J = np.asarray(state.limits.active_BJ), np.asarray(state.limits.header_BJ)
    sizes = np.asarray(matching.length_V)[np.asarray(token_ids, np.int32)]
    starts = np.cumsum(sizes) - sizes
    header_size = None
    for index, rank_J, before_J in matching.events(token_ids):
        begins_J = starts[index] - before_J
        if header_size is None and (header_J & (rank_J > 0) & (begins_J == 0)).any():
            header_size = len(texts[int(header_J.argmax())])
        # The s1 header begins with the delimiter, and the id that completes a header may begin the delimiter.
        rank_J = np.where(active_J & (begins_J >= (header_size or 0)), rank_J, 0)
        if header_size is not None and rank_J.any():
            first = _first_of(sizes, index, before_J[rank_J.argmax()])
            return first, _after_header(matching, state, token_ids, first, index), NATURAL
    n_ids = len(token_ids)
    if header_size is None:
        return 0, 0, NO_REASON
    if is_eos_V[token_ids[-1]]:
        return n_ids - 1, n_ids - 1, NATURAL
    reasons = {FULL: LENGTH, REPETITION: LOOP}
    return n_ids, n_ids, reasons.get(int(state.progress.finish_B), NO_REASON)


def _first_of(sizes: np.ndarray, last: int, n_before: int) -> int:
    """Index of the first id that holds one of the `n_before` bytes before id `last`."""
    first = last
    while n_before > 0:
        first -= 1
        n_before -= sizes[first]
    return first


def _after_header(matching: Matching, state: State, token_ids: Sequence[int], first: int, last: int) -> int:
    """Index after `answer_start` if the delimiter in ids `first` to `last` begins one, else after the delimiter."""
    start_J = np.asarray(state.limits.answer_start_BJ)
    sizes = np.asarray(matching.length_V)[np.asarray(token_ids, np.int32)]
    for index, rank_J, before_J in matching.events(token_ids[first:]):
        if rank_J[start_J].any():
            begins = _first_of(sizes, first + index, before_J[start_J][0])
            return first + index + 1 if begins == first else last + 1
    return last + 1
