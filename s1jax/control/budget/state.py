"""The state of a row under budget forcing, and fresh states from admitted requests.

Everything is an int32 or a bool with leading axis B. Beside the letters of `s1jax.parallel.axes` and
`s1jax.control.matching`:

    Q text that can be put      I id within it      U pause threshold
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from s1jax.config import BadInput
from s1jax.control.budget.settings import MAX_NEWLINE_IDS, MAX_PAUSES, MAX_STRING_IDS, MAX_STRINGS, BudgetSettings
from s1jax.control.trail import Trail, empty_trail
from s1jax.engine.protocol import Array

THINK, CLOSE, ANSWER, OVER = 0, 1, 2, 3
S1JAX, HARNESS, README = 0, 1, 2
END_THINKING, STOP_ROW, REPORT = 0, 1, 2
NO_REASON, NATURAL, BUDGET, LOOP, LENGTH = 0, 1, 2, 3, 4
STOP, FULL, REPETITION = 1, 2, 3
OPEN, NO_END, NO_BEGINNING = 0, 1, 2

ALGORITHMS = {"s1jax": S1JAX, "harness": HARNESS, "readme": README}
ACTIONS = {"end_thinking": END_THINKING, "stop": STOP_ROW, "report": REPORT}
REASONS = {NO_REASON: None, NATURAL: "natural", BUDGET: "budget", LOOP: "loop", LENGTH: "length"}
FINISHES = {0: None, STOP: "stop", FULL: "length", REPETITION: "repetition"}

# Texts that can be put: the ignore strings, and three more.
ANSWER_START, FORCED_END, NEWLINE_FORCED_END = MAX_STRINGS, MAX_STRINGS + 1, MAX_STRINGS + 2
N_TEXTS, MAX_TEXT_IDS = MAX_STRINGS + 3, MAX_STRING_IDS + MAX_NEWLINE_IDS
NEVER = 2**31 - 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Limits:
    """What was asked for; see `BudgetSettings`. It does not change while the row runs.

    Attributes:
      algorithm_B, loop_action_B: codes of this module.
      room_B, budget_B, minimum_B, n_ignore_B, answer_budget_B: ids, or NEVER.
      over_reason_B: reason when the budget is spent, BUDGET or LENGTH.
      n_strings_B: how many ignore strings there are.
      text_BQI, text_size_BQ: ids that can be put, and how many.
      active_BJ, kept_BJ: delimiters of this row; those that stay where they were drawn.
      header_BJ, answer_start_BJ: which text is the think header, and which `answer_start`; only the account asks.
      is_free_B: plain completion.
      pause_BU: thresholds, padded with NEVER (at least once).
      max_pattern_B (0: no detection), min_pattern_B, min_count_B: loop detection.
    """

    algorithm_B: Array
    loop_action_B: Array
    room_B: Array
    budget_B: Array
    minimum_B: Array
    n_ignore_B: Array
    answer_budget_B: Array
    over_reason_B: Array
    n_strings_B: Array
    text_BQI: Array
    text_size_BQ: Array
    active_BJ: Array
    kept_BJ: Array
    header_BJ: Array
    answer_start_BJ: Array
    is_free_B: Array
    pause_BU: Array
    max_pattern_B: Array
    min_pattern_B: Array
    min_count_B: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a row is.

    Attributes:
      phase_B: THINK, CLOSE, ANSWER or OVER.
      length_B: ids kept after the prompt.
      steps_B: steps spent.
      ignored_B: ends ignored.
      round_B: ids drawn in this round (`harness`) or in all rounds (`readme`), ends counted in the latter.
      text_B, cursor_B: the text being put and its next id; cursor 0: none.
      guard_B: what the next draw that is looked at cannot be: OPEN, NO_END or NO_BEGINNING.
      is_looping_B: a loop was found and thinking is to be closed.
      pause_B: index of the next pause threshold.
      loop_at_B: thinking ids at the first loop that was only reported, or -1.
      thinking_B, offset_B, answer_B: the account: thinking ids, index of the first answer id, answer ids.
      reason_B, finish_B: codes of this module.
    """

    phase_B: Array
    length_B: Array
    steps_B: Array
    ignored_B: Array
    round_B: Array
    text_B: Array
    cursor_B: Array
    guard_B: Array
    is_looping_B: Array
    pause_B: Array
    loop_at_B: Array
    thinking_B: Array
    offset_B: Array
    answer_B: Array
    reason_B: Array
    finish_B: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """A row: what was asked for, where it is, and its last ids."""

    limits: Limits
    progress: Progress
    trail: Trail


def fresh(requests: Sequence[BudgetSettings], texts: Sequence[bytes], n_recent: int, max_pattern: int) -> State:
    """States of rows that begin.

    Args:
      texts: delimiters of the tables, in order.
      n_recent, max_pattern: the sizes W and P.

    Raises:
      BadInput: a request has a delimiter or a pattern size that the tables were not built for.
    """
    for row in requests:
        for text in {*row.delimiters} - {*texts}:
            raise BadInput(f"delimiter {text!r} is none of {list(texts)}, for which the run was set up; add it there")
        if row.repetition is not None and row.repetition.max_pattern_size > max_pattern:
            raise BadInput(
                f"repetition_detection.max_pattern_size is {row.repetition.max_pattern_size}, and the run was set up "
                f"for at most {max_pattern}; set it up for the larger one"
            )
    trail = empty_trail(len(requests), n_recent, max_pattern)
    return State(limits=_limits(requests, texts), progress=_progress(requests), trail=trail)


def _limits(requests: Sequence[BudgetSettings], texts: Sequence[bytes]) -> Limits:
    def numbers(value: Callable[[BudgetSettings], int]) -> np.ndarray:
        return np.array([value(row) for row in requests], np.int32)

    def table(values: list[list[bool]]) -> np.ndarray:
        return np.array(values, bool).reshape(len(requests), len(texts))

    text_BQI = np.zeros((len(requests), N_TEXTS, MAX_TEXT_IDS), np.int32)
    text_size_BQ = np.zeros((len(requests), N_TEXTS), np.int32)
    pause_BU = np.full((len(requests), MAX_PAUSES + 1), NEVER, np.int32)
    for index, row in enumerate(requests):
        ends = (row.answer_start, row.forced_end, row.newline + row.forced_end)
        for slot, ids in [*enumerate(row.strings), *enumerate(ends, ANSWER_START)]:
            text_BQI[index, slot, : len(ids)] = ids
            text_size_BQ[index, slot] = len(ids)
        pause_BU[index, : len(row.pause_at)] = row.pause_at
    kept = [{text for text, kept in zip(row.delimiters, row.is_kept, strict=True) if kept} for row in requests]
    return Limits(
        algorithm_B=numbers(lambda row: ALGORITHMS[row.algorithm]),
        loop_action_B=numbers(lambda row: ACTIONS[row.loop_action]),
        room_B=numbers(lambda row: row.room),
        budget_B=numbers(lambda row: row.budget),
        minimum_B=numbers(lambda row: row.minimum),
        n_ignore_B=numbers(lambda row: row.n_ignore),
        answer_budget_B=numbers(lambda row: row.answer_budget or NEVER),
        over_reason_B=numbers(_over_reason),
        n_strings_B=numbers(lambda row: len(row.strings)),
        text_BQI=text_BQI,
        text_size_BQ=text_size_BQ,
        active_BJ=table([[text in row.delimiters for text in texts] for row in requests]),
        kept_BJ=table([[text in names for text in texts] for names in kept]),
        header_BJ=table([[text == row.header for text in texts] for row in requests]),
        answer_start_BJ=table([[text == row.answer_text for text in texts] for row in requests]),
        is_free_B=np.array([row.is_free for row in requests], bool),
        pause_BU=pause_BU,
        max_pattern_B=numbers(lambda row: row.repetition.max_pattern_size if row.repetition else 0),
        min_pattern_B=numbers(lambda row: row.repetition.min_pattern_size if row.repetition else 1),
        min_count_B=numbers(lambda row: row.repetition.min_count if row.repetition else 2),
    )


def _progress(requests: Sequence[BudgetSettings]) -> Progress:
    zeros = {field.name: np.zeros(len(requests), np.int32) for field in dataclasses.fields(Progress)}
    # The readme's loop puts no closing, so with nothing to spend its answer begins at once.
    spent = [row.is_thinking and row.algorithm == "readme" and row.budget == 0 for row in requests]
    thinks = [row.is_thinking and not is_spent for row, is_spent in zip(requests, spent, strict=True)]
    special = {
        "phase_B": np.where(thinks, THINK, ANSWER).astype(np.int32),
        "reason_B": np.where(spent, [_over_reason(row) for row in requests], NO_REASON).astype(np.int32),
        "loop_at_B": np.full(len(requests), -1, np.int32),
        "is_looping_B": np.zeros(len(requests), bool),
        # Upstream masks the stops of the first draw of every round, the first round too (min_tokens=1).
        "guard_B": np.array([NO_END if row.algorithm == "harness" else OPEN for row in requests], np.int32),
    }
    return Progress(**{**zeros, **special})


def _over_reason(row: BudgetSettings) -> int:
    return BUDGET if row.has_budget else LENGTH
