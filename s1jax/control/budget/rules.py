"""The rules of budget forcing (arXiv 2501.19393, section 3.1), each as a select over all rows.

Order in every step of a thinking row: close when the budget is spent or a loop was found; else put the next id of a
string; else look at the drawn id, which is an end of thinking or is kept. An end is natural, or it is ignored and a
string put in its place. The answer that follows ends at an EOS, at a loop, or when its room is used up.

Letters: see `s1jax.parallel.axes`, `s1jax.control.matching` and `s1jax.control.budget.state`.
"""

import dataclasses

import jax.numpy as jnp

from s1jax.control.budget.state import (
    ANSWER,
    ANSWER_START,
    CLOSE,
    END_THINKING,
    FORCED_END,
    FULL,
    HARNESS,
    LOOP,
    NATURAL,
    NEWLINE_FORCED_END,
    NO_BEGINNING,
    NO_END,
    OPEN,
    OVER,
    README,
    REPETITION,
    REPORT,
    S1JAX,
    STOP,
    STOP_ROW,
    THINK,
    Limits,
    Progress,
)
from s1jax.engine.protocol import Array


@dataclasses.dataclass(frozen=True)
class Draw:
    """What the drawn id means to a row that looks at it.

    Attributes:
      is_end_B: it is an EOS or completes a delimiter.
      is_eos_B: it is an EOS.
      is_kept_B: it completes a delimiter that stays where it stands.
      pending_B: how many ids before it hold bytes of that delimiter.
      half_B: how many ids before it may be the beginning of a delimiter.
      loops_B: with it the ids end in a loop.
    """

    is_end_B: Array
    is_eos_B: Array
    is_kept_B: Array
    pending_B: Array
    half_B: Array
    loops_B: Array


@dataclasses.dataclass(frozen=True)
class Move:
    """What a row does in this step.

    Attributes:
      looks_B: it looks at the draw: one of keeps, replaces, stays, hands_over, ignores, skips.
      keeps_B: the draw is no end.
      replaces_B: a natural end, in whose place `answer_start` is put.
      stays_B: a natural end that is kept.
      hands_over_B: a natural end that is dropped, and nothing is put (`readme`).
      ignores_B: an ignored end, in whose place a string is put.
      skips_B: an ignored end that is dropped, and nothing is put.
      closes_B: the end of thinking is forced.
      injects_B: the next id of a text is put.
      answers_B: the draw belongs to the answer.
      pauses_B: nothing of all this happens.
    """

    looks_B: Array
    keeps_B: Array
    replaces_B: Array
    stays_B: Array
    hands_over_B: Array
    ignores_B: Array
    skips_B: Array
    closes_B: Array
    injects_B: Array
    answers_B: Array
    pauses_B: Array


@dataclasses.dataclass(frozen=True)
class Text:
    """The text being put: whether an id of it is put now, which text, which id of it, and whether that is its last."""

    puts_B: Array
    text_B: Array
    cursor_B: Array
    is_last_B: Array


def closes_or_looks(limits: Limits, progress: Progress) -> tuple[Array, Array]:
    """Rows whose thinking is closed in this step, and rows that look at their draw; known before the draw."""
    thinks_B = progress.phase_B == THINK
    spent_B = jnp.where(limits.algorithm_B == S1JAX, progress.length_B, progress.round_B)
    closes_B = thinks_B & ((spent_B >= limits.budget_B) | progress.is_looping_B)
    return closes_B, thinks_B & ~closes_B & (progress.cursor_B == 0)


def decide(limits: Limits, progress: Progress, draw: Draw) -> Move:
    """What each row does. `length` is the number of thinking ids without the delimiter that the draw completes."""
    closes_B, looks_B = closes_or_looks(limits, progress)
    thinks_B = progress.phase_B == THINK
    is_readme_B = limits.algorithm_B == README
    length_B = progress.length_B - draw.pending_B
    size_B = _at(limits.text_size_BQ, _turn(limits, progress))
    is_long_enough_B = length_B >= limits.minimum_B
    is_early_B = (progress.ignored_B < limits.n_ignore_B) | ~is_long_enough_B
    # The readme's budget counts the end it ignores, and it begins no round with nothing left.
    is_early_B = is_early_B & (~is_readme_B | (progress.round_B + 1 < limits.budget_B))
    fits_B = (limits.algorithm_B != S1JAX) | (length_B + size_B <= limits.budget_B)
    ends_B = looks_B & draw.is_end_B
    ignores_B = ends_B & is_early_B & (size_B > 0) & fits_B
    skips_B = ends_B & is_early_B & ((size_B == 0) | (~fits_B & ~is_long_enough_B))
    natural_B = ends_B & ~ignores_B & ~skips_B
    stays_B = natural_B & draw.is_kept_B & (limits.algorithm_B == S1JAX)
    threshold_B = _at(limits.pause_BU, progress.pause_B)
    # A row whose budget is a threshold within the string does not put it: here the ways part.
    parts_B = ignores_B & (length_B <= threshold_B) & (threshold_B < length_B + size_B)
    return Move(
        looks_B=looks_B,
        keeps_B=looks_B & ~draw.is_end_B,
        replaces_B=natural_B & ~stays_B & ~is_readme_B,
        stays_B=stays_B,
        hands_over_B=natural_B & is_readme_B,
        ignores_B=ignores_B,
        skips_B=skips_B,
        closes_B=closes_B,
        injects_B=(thinks_B & ~closes_B & ~looks_B) | (progress.phase_B == CLOSE),
        answers_B=progress.phase_B == ANSWER,
        pauses_B=thinks_B & ((threshold_B <= progress.length_B) | parts_B),
    )


def rewind(limits: Limits, progress: Progress, draw: Draw, move: Move) -> Array:
    """Ids taken back: half a delimiter at a closing, what came before of an end that does not stay."""
    is_harness_B = limits.algorithm_B == HARNESS
    drops_B = move.replaces_B | move.hands_over_B | move.ignores_B | move.skips_B
    taken_B = jnp.where(drops_B, draw.pending_B, jnp.where(move.closes_B & ~is_harness_B, draw.half_B, 0))
    # The harness cuts what all rounds and strings add up to at the budget of one round.
    excess_B = jnp.maximum(progress.length_B - taken_B - limits.budget_B, 0)
    return taken_B + jnp.where(is_harness_B & (move.closes_B | move.replaces_B), excess_B, 0)


def put(limits: Limits, progress: Progress, move: Move, ends_line_B: Array) -> Text:
    """The text that a closing, a replaced end or an ignored end begins, or the one that goes on.

    Args:
      ends_line_B: the thinking that is left ends in a newline, so that a closing needs none.
    """
    begins_B = move.closes_B | move.replaces_B | move.ignores_B
    closing_B = jnp.where(ends_line_B, FORCED_END, NEWLINE_FORCED_END)
    begun_B = jnp.where(move.replaces_B, ANSWER_START, _turn(limits, progress))
    text_B = jnp.where(begins_B, jnp.where(move.closes_B, closing_B, begun_B), progress.text_B)
    cursor_B = jnp.where(begins_B, 0, progress.cursor_B)
    puts_B = begins_B | move.injects_B
    return Text(puts_B, text_B, cursor_B, puts_B & (cursor_B + 1 == _at(limits.text_size_BQ, text_B)))


def advance(
    limits: Limits, progress: Progress, draw: Draw, move: Move, text: Text, *, rewind_B: Array, is_kept_B: Array
) -> Progress:
    """Counts and marks after the step; the phase and the account are those of before (`leave`, `answer`)."""
    is_readme_B = limits.algorithm_B == README
    is_ignored_B = move.ignores_B | move.skips_B
    length_B = progress.length_B - rewind_B + is_kept_B
    counted_B = move.keeps_B | (is_ignored_B & is_readme_B)
    reports_B = move.keeps_B & draw.loops_B & (limits.loop_action_B == REPORT) & (progress.loop_at_B < 0)
    return dataclasses.replace(
        progress,
        length_B=length_B,
        steps_B=progress.steps_B + (progress.phase_B != OVER),
        ignored_B=progress.ignored_B + is_ignored_B,
        round_B=jnp.where(is_ignored_B & ~is_readme_B, 0, progress.round_B + counted_B),
        text_B=text.text_B,
        cursor_B=jnp.where(text.puts_B & ~text.is_last_B, text.cursor_B + 1, 0),
        guard_B=_guard(limits, progress, draw, move),
        is_looping_B=move.keeps_B & draw.loops_B & (limits.loop_action_B == END_THINKING),
        loop_at_B=jnp.where(reports_B, length_B, progress.loop_at_B),
    )


def _guard(limits: Limits, progress: Progress, draw: Draw, move: Move) -> Array:
    """What the next draw that is looked at cannot be: after an ignored end not an end, so that thinking goes on.

    Where ids were taken back and nothing was put, it cannot be the beginning of an end either, in whatever spelling:
    the row would come to the same point again and, as a draw depends on the position, for ever.
    """
    kept_B = jnp.where(move.looks_B | move.closes_B, OPEN, progress.guard_B)
    guard_B = jnp.where(move.ignores_B | move.skips_B, NO_END, kept_B)
    repeats_B = move.skips_B & (draw.pending_B > 0) & (limits.algorithm_B == S1JAX)
    return jnp.where(repeats_B, NO_BEGINNING, guard_B)


def leave(limits: Limits, before: Progress, after: Progress, draw: Draw, move: Move, text: Text) -> Progress:
    """The end of thinking: its account, its reason, and the phase that follows."""
    natural_B = move.replaces_B | move.stays_B | move.hands_over_B
    # A round of the readme that spends the budget is followed by the answer, with nothing between them.
    spends_B = move.keeps_B & (limits.algorithm_B == README) & (after.round_B >= limits.budget_B)
    stops_B = move.keeps_B & draw.loops_B & (limits.loop_action_B == STOP_ROW)
    leaves_B = natural_B | move.closes_B | spends_B | stops_B
    is_begun_B = move.closes_B | move.replaces_B
    thinking_B = jnp.where(move.stays_B, before.length_B - draw.pending_B, after.length_B - is_begun_B)
    reason_B = jnp.where(before.is_looping_B | stops_B, LOOP, limits.over_reason_B)
    phase_B = jnp.where(is_begun_B, CLOSE, before.phase_B)
    phase_B = jnp.where((phase_B == CLOSE) & text.is_last_B, ANSWER, phase_B)
    phase_B = jnp.where(move.stays_B | move.hands_over_B | spends_B, ANSWER, phase_B)
    begins_B = (phase_B == ANSWER) & (before.phase_B != ANSWER)
    return dataclasses.replace(
        after,
        phase_B=jnp.where(stops_B, OVER, phase_B),
        thinking_B=jnp.where(leaves_B, thinking_B, before.thinking_B),
        offset_B=jnp.where(begins_B | stops_B, after.length_B, before.offset_B),
        reason_B=jnp.where(leaves_B, jnp.where(natural_B, NATURAL, reason_B), before.reason_B),
        finish_B=jnp.where(stops_B, REPETITION, before.finish_B),
    )


def answer(limits: Limits, after: Progress, draw: Draw, move: Move) -> Progress:
    """The answer: ids counted, and its end; a row that has no room left when thinking ends is over too."""
    is_stop_B = move.answers_B & draw.is_eos_B
    is_counted_B = move.answers_B & ~is_stop_B
    answer_B = after.answer_B + is_counted_B
    is_full_B = (after.length_B >= limits.room_B) | (answer_B >= limits.answer_budget_B)
    finish_B = jnp.where((after.phase_B == ANSWER) & is_full_B, FULL, after.finish_B)
    finish_B = jnp.where(is_counted_B & draw.loops_B, REPETITION, finish_B)
    finish_B = jnp.where(is_stop_B, STOP, finish_B)
    return dataclasses.replace(
        after, phase_B=jnp.where(finish_B > 0, OVER, after.phase_B), answer_B=answer_B, finish_B=finish_B
    )


def _turn(limits: Limits, progress: Progress) -> Array:
    """The string whose turn it is at the next ignored end."""
    return progress.ignored_B % jnp.maximum(limits.n_strings_B, 1)


def _at(x_BQ: Array, index_B: Array) -> Array:
    return jnp.take_along_axis(x_BQ, index_B[:, None], axis=1)[:, 0]
