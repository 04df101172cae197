"""What happens to a paused row from outside: tokens put behind it, and other limits for a copy of it. On the host."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from s1jax.config import BadInput
from s1jax.control.budget.state import ANSWER, NO_REASON, OVER, S1JAX, THINK, State
from s1jax.control.trail import Trail, empty_trail


def extend(state: State, ends_line: Sequence[bool]) -> State:
    """The state of a row behind which tokens were put: forced ones, which its control counts like any others.

    In thinking they count against the budget. In the answer they take room and are not drawn. Neither the delimiters
    nor the loop detector look into them or across them. The row spends no step.

    Args:
      state: of one row, without the axis B.
      ends_line: for each token, whether its text ends in a newline.

    Raises:
      BadInput: they do not fit into the budget or the room, or the row is in the middle of a text of its control.
    """
    limits, progress, phase, n = state.limits, state.progress, int(state.progress.phase_B), len(ends_line)
    length = int(progress.length_B) + n
    if int(limits.algorithm_B) != S1JAX:
        raise BadInput("a row of control.algorithm=harness or readme takes no tokens from outside; use algorithm=s1jax")
    if phase not in (THINK, ANSWER) or int(progress.cursor_B) > 0 or progress.is_looping_B:
        raise BadInput("the control is in the middle of a text that it puts; resume the row and extend it later")
    if phase == THINK and length > int(limits.budget_B):
        raise BadInput(
            f"{n} tokens behind {int(progress.length_B)} of thinking are above the thinking budget of "
            f"{int(limits.budget_B)}; give at most {int(limits.budget_B) - int(progress.length_B)}"
        )
    if phase == ANSWER and length >= int(limits.room_B):
        raise BadInput(
            f"{n} tokens behind {int(progress.length_B)} leave no room to go on, of {int(limits.room_B)} in all; "
            f"give at most {int(limits.room_B) - int(progress.length_B) - 1}"
        )
    n_passed = np.count_nonzero(np.asarray(limits.pause_BU) < length)
    changed = dataclasses.replace(
        progress, length_B=np.int32(length), pause_B=np.maximum(progress.pause_B, n_passed).astype(np.int32)
    )
    return State(limits, changed, _restarted(state.trail, ends_line))


def _restarted(trail: Trail, ends_line: Sequence[bool]) -> Trail:
    """A trail in which nothing counts but where lines end."""
    n_recent, max_pattern = trail.run_BWP.shape
    empty = jax.tree.map(lambda leaf: leaf[0], empty_trail(1, n_recent, max_pattern))
    newline_W = np.concatenate([np.array(ends_line[::-1], bool), np.asarray(trail.newline_BW)])[:n_recent]
    return dataclasses.replace(empty, newline_BW=newline_W)


def refork(state: State, fresh: State) -> State:
    """The same point of the same sequence under the limits of `fresh`; thresholds it has passed are passed over.

    Args:
      state, fresh: of one row, without the axis B; `fresh` is the beginning of a row under the new settings.

    Raises:
      BadInput: the row has more tokens than the new limits allow, or the new settings are of another sort.
    """
    old, new, progress = state.limits, fresh.limits, state.progress
    phase, length = int(progress.phase_B), int(progress.length_B)
    thought = length if phase == THINK else int(progress.thinking_B)
    has_thought = phase == THINK or int(progress.reason_B) != NO_REASON
    if phase == OVER:
        return state
    for name, what in (("algorithm_B", "another control.algorithm"), ("is_free_B", "another control.kind")):
        if getattr(old, name) != getattr(new, name):
            raise BadInput(f"a copy cannot go on under {what}; give the row's own, or all its tokens as a new prompt")
    if has_thought and int(new.algorithm_B) == S1JAX and thought > int(new.budget_B):
        raise BadInput(
            f"the row has {thought} tokens of thinking, above the thinking budget of {int(new.budget_B)}; give at "
            f"least {thought}, or fork earlier"
        )
    if phase == ANSWER and length >= int(new.room_B):
        raise BadInput(f"the row has {length} tokens, which leaves none of a room of {int(new.room_B)}; give more room")
    if int(progress.answer_B) >= int(new.answer_budget_B):
        raise BadInput(
            f"the row has {int(progress.answer_B)} tokens of answer, which leaves none of an answer budget of "
            f"{int(new.answer_budget_B)}; give more"
        )
    if int(progress.cursor_B) > 0 and _differ(old, new, ("text_BQI", "text_size_BQ")):
        raise BadInput("the row is in the middle of a text that the new settings do not have; resume it and fork later")
    n_passed = np.count_nonzero(np.asarray(new.pause_BU) <= length)
    return State(new, dataclasses.replace(progress, pause_B=np.int32(n_passed)), state.trail)


def _differ(old: Any, new: Any, names: Sequence[str]) -> bool:
    return any(not np.array_equal(getattr(old, name), getattr(new, name)) for name in names)
