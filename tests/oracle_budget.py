"""A slow, plain simulator of the budget-forcing rules: the oracle that the compiled control is compared with.

It is written from the rules alone and shares nothing with the code under test. There is no automaton here: whether
thinking has ended is decided by joining the bytes of the ids and searching in them again at every draw.

Words used below: an id is *kept* when it stands in the output after the step; a draw is *looked at* when the rules
let it decide anything; an id is *put* when the rules write it, whatever was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from oracle_matching import EOS, beginnings, find_end, half_delimiter, repeats, usual_ends

Draw = Callable[[tuple[int, ...], frozenset[int]], int]
NOTHING: frozenset[int] = frozenset()
STEP_LIMIT = 100_000  # a row that needs more is a row whose rules do not end


class Refused(Exception):
    """The row cannot be admitted: its numbers do not fit, or a setting has no meaning there."""


class NeverEnds(Exception):
    """The rules let this model go round for ever without keeping an id."""


@dataclass(frozen=True)
class OracleRow:
    """One request. Lengths and budgets count ids; strings are ids, delimiters are bytes."""

    prompt_length: int
    max_length: int
    max_new_tokens: int
    token_bytes: tuple[bytes, ...]  # by id; ids >= len are never drawn
    eos_ids: frozenset[int]
    delimiters: tuple[bytes, ...]
    delimiter_first_ids: tuple[int, ...]  # first id of the canonical encoding of each delimiter
    kept_delimiter: tuple[bool, ...]
    answer_start: tuple[int, ...]
    forced_end: tuple[int, ...]
    newline: tuple[int, ...]
    thinking: bool = True
    budget: int | None = None
    minimum: int = 0
    n_ignore: int = 0
    strings: tuple[tuple[int, ...], ...] = ()
    answer_budget: int | None = None
    repetition: tuple[int, int, int] | None = None  # (max_pattern_size, min_pattern_size, min_count)
    loop_action: str = "end_thinking"  # end_thinking | stop | report
    mode: str = "s1jax"  # s1jax | harness | readme
    unstripped_eos_ids: frozenset[int] = (
        NOTHING  # harness: EOS ids that end a round and yet stay, as upstream leaves them
    )

    @property
    def room(self) -> int:
        """Ids that may follow the prompt."""
        return min(self.max_length - self.prompt_length, self.max_new_tokens)

    def string(self, k: int) -> tuple[int, ...]:
        """The string for the k-th ignored end, counted from 0; empty where there is none."""
        return self.strings[k % len(self.strings)] if self.strings else ()


@dataclass(frozen=True)
class OracleResult:
    token_ids: tuple[int, ...]
    forced: tuple[bool, ...]
    thinking_tokens: int
    answer_offset: int
    answer_tokens: int
    n_ignored: int
    steps: int
    thinking_finish_reason: str | None
    finish_reason: str
    loop_at: int | None


def simulate(row: OracleRow, draw: Draw) -> OracleResult:
    """Run one row to its end. `draw(kept, forbidden)` is the model, called once for every step.

    Raises Refused before the first draw, NeverEnds after STEP_LIMIT draws.
    """
    run = _Run(row, draw)
    if not row.thinking:
        _check_without_thinking(row)
        return _answer(run, _Thought(None, 0))
    budget = effective_budget(row)
    over = "budget" if _is_given(row.budget) else "length"
    think = {"s1jax": _think, "harness": _think_harness, "readme": _think_readme}[row.mode]
    thought = think(run, budget, over)
    if thought.stopped:
        return _result(run, thought, len(run.kept), 0, "repetition")
    return _answer(run, thought)


# ---------------------------------------------------------------------------------------------------- admission


def effective_budget(row: OracleRow) -> int:
    """The thinking budget N that the row runs under (for `harness`: of each round)."""
    _check_numbers(row)
    after_thinking = max(len(row.newline) + len(row.forced_end), len(row.answer_start))
    capacity = row.room - after_thinking - (row.answer_budget or 0)
    string_ids = sum(len(row.string(k)) for k in range(row.n_ignore))
    rounds, extra = 1, 0
    if row.mode == "harness":
        rounds, extra = row.n_ignore + 1, string_ids
    if row.mode == "readme":
        extra = string_ids
    if capacity - extra < 0:
        raise Refused(f"capacity {capacity} of room {row.room} leaves nothing for thinking (strings: {extra})")
    budget = row.budget if row.budget is not None and row.budget != -1 else (capacity - extra) // rounds
    if rounds * budget + extra > capacity:
        raise Refused(f"budget {budget} x {rounds} + strings {extra} > capacity {capacity}")
    if row.minimum > budget:
        raise Refused(f"minimum {row.minimum} > budget {budget}")
    return budget


def _is_given(budget: int | None) -> bool:
    return budget is not None and budget != -1


def _check_numbers(row: OracleRow) -> None:
    for name, value, least in (
        ("budget", row.budget, -1),
        ("minimum", row.minimum, 0),
        ("n_ignore", row.n_ignore, 0),
        ("answer_budget", row.answer_budget, 1),
    ):
        if value is None and name in ("budget", "answer_budget"):
            continue
        if type(value) is not int or value < least:
            raise Refused(f"{name} is {value!r}: not an integer >= {least}")
    if row.mode != "s1jax" and (row.minimum or row.repetition):
        raise Refused(f"mode {row.mode} knows no minimum and no loop detector")
    if row.mode != "harness" and row.unstripped_eos_ids:
        raise Refused(f"mode {row.mode} keeps no EOS in thinking")


def _check_without_thinking(row: OracleRow) -> None:
    if _is_given(row.budget) or row.minimum or row.n_ignore:
        raise Refused("budget, minimum and n_ignore have no meaning without thinking")
    _check_numbers(row)
    if row.room < 1 or row.room < (row.answer_budget or 0):
        raise Refused(f"room {row.room} < answer budget {row.answer_budget}")


# ----------------------------------------------------------------------------------------------------- one row


@dataclass(frozen=True)
class _Thought:
    reason: str | None
    thinking_tokens: int
    stopped: bool = False  # the loop detector ended the whole row


class _Run:
    """The output so far, and the only place that calls the model."""

    def __init__(self, row: OracleRow, draw: Draw) -> None:
        self.row = row
        self.draw = draw
        self.kept: list[int] = []
        self.forced: list[bool] = []
        self.steps = 0
        self.n_ignored = 0
        self.loop_at: int | None = None
        self.fresh_from = 0  # matching and the loop detector see kept[fresh_from:] only
        self.usual_ends = usual_ends(row.token_bytes, row.eos_ids, row.delimiters, row.delimiter_first_ids)
        self.beginnings = beginnings(row.token_bytes, row.delimiters)

    def look(self, forbidden: frozenset[int] = NOTHING) -> int:
        """Begin a step and return its draw."""
        self.steps += 1
        if self.steps > STEP_LIMIT:
            raise NeverEnds(f"{len(self.kept)} ids kept, {self.n_ignored} ends ignored after {STEP_LIMIT} steps")
        drawn = self.draw(tuple(self.kept), forbidden)
        if drawn in forbidden or not 0 <= drawn < len(self.row.token_bytes):
            raise ValueError(f"the model drew {drawn}, which is forbidden or not in the vocabulary")
        return drawn

    def keep(self, drawn: int) -> None:
        self.kept.append(drawn)
        self.forced.append(False)

    def rewind(self, count: int) -> None:
        del self.kept[len(self.kept) - count :]
        del self.forced[len(self.forced) - count :]

    def put(self, ids: Sequence[int], step_begun: bool, rewind: int = 0) -> None:
        """Write ids, one a step; the first in the step already begun, if one is. The rewind is part of the first."""
        if not step_begun:
            self.look()
        self.rewind(rewind)
        for place, token in enumerate(ids):
            if place > 0:
                self.look()
            self.kept.append(token)
            self.forced.append(True)
        self.fresh_from = len(self.kept)

    @property
    def fresh(self) -> list[int]:
        return self.kept[self.fresh_from :]

    def end_at(self, drawn: int) -> tuple[int, int] | None:
        """The end that `drawn` is or completes (index of the delimiter, or EOS) and the number of its earlier ids."""
        return find_end(self.row.token_bytes, self.row.eos_ids, self.row.delimiters, self.fresh, drawn)

    def last_ends_in_newline(self, but: int = 0) -> bool:
        """Whether the last kept id ends in a newline when `but` ids are taken away first."""
        left = self.kept[: len(self.kept) - but]
        return bool(left) and self.row.token_bytes[left[-1]].endswith(b"\n")


# ----------------------------------------------------------------------------------------------------- thinking


def _think(run: _Run, budget: int, over: str) -> _Thought:
    row = run.row
    loop = False
    forbidden = NOTHING
    while True:
        if loop or len(run.kept) >= budget:
            return _close(run, "loop" if loop else over)
        drawn = run.look(forbidden)
        forbidden = NOTHING
        end = run.end_at(drawn)
        if end is None:
            run.keep(drawn)
            if repeats(run.fresh, row.repetition):
                if row.loop_action == "stop":
                    return _Thought("loop", len(run.kept), stopped=True)
                if row.loop_action == "report" and run.loop_at is None:
                    run.loop_at = len(run.kept)
                loop = row.loop_action == "end_thinking"
            continue
        delimiter, earlier = end
        thinking = len(run.kept) - earlier
        string = row.string(run.n_ignored)
        fits = bool(string) and thinking + len(string) <= budget
        ignored = run.n_ignored < row.n_ignore or thinking < row.minimum
        if string and not fits and thinking >= row.minimum:
            ignored = False
        if not ignored:
            return _end_naturally(run, drawn, delimiter, earlier)
        run.n_ignored += 1
        forbidden = run.usual_ends
        if fits:
            run.put(string, step_begun=True, rewind=earlier)
        else:
            run.rewind(earlier)
            if earlier:
                # Else the same ids would be drawn from the same ids again, and taken back again, for ever.
                forbidden = run.usual_ends | run.beginnings


def _end_naturally(run: _Run, drawn: int, delimiter: int, earlier: int) -> _Thought:
    thinking = len(run.kept) - earlier
    if delimiter != EOS and run.row.kept_delimiter[delimiter]:
        run.keep(drawn)
    else:
        run.put(run.row.answer_start, step_begun=True, rewind=earlier)
    return _Thought("natural", thinking)


def _close(run: _Run, reason: str) -> _Thought:
    half = half_delimiter(run.row.token_bytes, run.row.delimiters, run.fresh)
    thinking = len(run.kept) - half
    newline = () if run.last_ends_in_newline(but=half) else run.row.newline
    run.put(newline + run.row.forced_end, step_begun=False, rewind=half)
    return _Thought(reason, thinking)


@dataclass(frozen=True)
class _Round:
    """One call of the upstream engine."""

    ended: bool  # by an end, else by its limit
    drawn_ids: int
    step_open: bool  # the step of the end has emitted nothing yet


def _round(run: _Run, limit: int, may_end_at_once: bool) -> _Round:
    run.fresh_from = len(run.kept)
    drawn_ids = 0
    while drawn_ids < limit:
        may_end = may_end_at_once or drawn_ids > 0
        drawn = run.look(NOTHING if may_end else run.usual_ends)
        drawn_ids += 1
        end = run.end_at(drawn)
        if end is None or drawn in run.row.unstripped_eos_ids:
            run.keep(drawn)
        else:
            run.rewind(end[1])
        if end is not None:
            return _Round(True, drawn_ids, step_open=drawn not in run.row.unstripped_eos_ids)
    return _Round(False, drawn_ids, step_open=False)


def _think_harness(run: _Run, budget: int, over: str) -> _Thought:
    row = run.row
    last = _round(run, budget, may_end_at_once=False)
    while last.ended and run.n_ignored < row.n_ignore:
        string = row.string(run.n_ignored)
        run.n_ignored += 1
        if string:
            run.put(string, last.step_open)
        last = _round(run, budget, may_end_at_once=False)
    too_many = max(0, len(run.kept) - budget)
    thinking = len(run.kept) - too_many
    if last.ended:
        run.put(row.answer_start, last.step_open, rewind=too_many)
        return _Thought("natural", thinking)
    # The newline is decided before the cut, so after one the text may end in two newlines or in none.
    newline = () if run.fresh and run.last_ends_in_newline() else row.newline
    run.put(newline + row.forced_end, last.step_open, rewind=too_many)
    return _Thought(over, thinking)


def _think_readme(run: _Run, budget: int, over: str) -> _Thought:
    remaining = budget
    last = _round(run, remaining, may_end_at_once=True)
    while run.n_ignored < run.row.n_ignore:
        remaining -= last.drawn_ids
        if remaining <= 0:
            break
        string = run.row.string(run.n_ignored)
        run.n_ignored += 1
        if string:
            run.put(string, last.step_open)
        last = _round(run, remaining, may_end_at_once=False)
    return _Thought("natural" if last.ended else over, len(run.kept))


# ------------------------------------------------------------------------------------------------------- answer


def _answer(run: _Run, thought: _Thought) -> OracleResult:
    row = run.row
    offset = len(run.kept)
    answer_tokens = 0
    if offset >= row.room:
        return _result(run, thought, offset, answer_tokens, "length")
    while True:
        drawn = run.look()
        run.keep(drawn)
        if drawn in row.eos_ids:
            return _result(run, thought, offset, answer_tokens, "stop")
        answer_tokens += 1
        if repeats(run.kept[offset:], row.repetition):
            return _result(run, thought, offset, answer_tokens, "repetition")
        if answer_tokens == row.answer_budget or len(run.kept) == row.room:
            return _result(run, thought, offset, answer_tokens, "length")


def _result(run: _Run, thought: _Thought, offset: int, answer_tokens: int, finish_reason: str) -> OracleResult:
    return OracleResult(
        token_ids=tuple(run.kept),
        forced=tuple(run.forced),
        thinking_tokens=thought.thinking_tokens,
        answer_offset=offset,
        answer_tokens=answer_tokens,
        n_ignored=run.n_ignored,
        steps=run.steps,
        thinking_finish_reason=thought.reason,
        finish_reason=finish_reason,
        loop_at=run.loop_at,
    )
