"""What the numbers say, in sentences: also when more thinking bought nothing. Plain data in, text out.

All claims of one report are one family: each holds only if its p-value does so after Holm's correction for the number
of comparisons, and its own interval excludes 0. `docs/intervals.md` records how often reports claim what is not there.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from s1jax.eval import stats
from s1jax.eval.scaling import FEWEST_QUESTIONS, Point, scaling
from s1jax.eval.stats import Interval

LEVEL = 0.05


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One thing that a report may claim.

    Attributes:
      effect: in percentage points, with its p-value.
      subject: what cannot be told from chance if nothing is claimed.
      more, less: the claim for an effect above and below 0.
      unit: of the effect.
      detail: said of the settings in either case.
    """

    effect: Interval
    subject: str
    more: str
    less: str
    unit: str = "points"
    detail: str = ""

    def sentence(self, n: int, adjusted: float) -> str:
        """The finding, one of `n` of its report, with the p-value `adjusted` for all of them."""
        value, low, high, p = _numbers(self.effect)
        head = f"No effect of {self.subject} on accuracy can be told from chance"
        if adjusted <= LEVEL and (low > 0 or high < 0):
            head = self.more if value > 0 else self.less
        at_once = f", {_p(adjusted)} for {n} comparisons at once" if n > 1 else ""
        shown = f"{value:+.1f} {self.unit} (95 % interval {low:+.1f} to {high:+.1f}; {_p(p)}{at_once})"
        return f"{head}: {shown}{self.detail}."


def findings(points: Sequence[Point], figures: Mapping[str, Any]) -> list[str]:
    """One sentence each on the slope, the ignored ends, the vote at equal tokens, and the limits.

    Args:
      points: single runs and votes over the same questions.
      figures: content of `scaling.json` made of them.
    """
    said, n_questions = [], len(points[0].accuracy)
    if n_questions < FEWEST_QUESTIONS:
        questions = f"{n_questions} question{'s are' if n_questions > 1 else ' is'}"
        said.append(f"No slope and no claim: {questions} too few, it takes at least {FEWEST_QUESTIONS}.")
    else:
        found = comparisons(points)
        adjusted = stats.holm([_numbers(one.effect)[-1] for one in found])
        if figures["scaling"]["value"] is None:
            said.append(f"No slope can be drawn: {figures['scaling']['reason']}.")
        said += [one.sentence(len(found), p) for one, p in zip(found, adjusted, strict=True)]
        said += _unmerged(figures)
        said += _votes_apart(points)
    control = figures["control"]["value"]
    if control is not None and control < 1:
        said.append(f"{100 * (1 - control):.2g} % of the rows did not keep to the limits of their setting.")
    return said


def comparisons(points: Sequence[Point]) -> list[Comparison]:
    """All that the report may claim: which ones is settled by the settings and their tokens, not by the accuracies."""
    single = [point for point in points if point.votes == 1]
    found, slope = [], scaling(single)
    if slope.value is not None:
        claims = ("more thinking", "More thinking raised accuracy", "More thinking lowered accuracy")
        found.append(Comparison(slope, *claims, unit="points per doubling of thinking tokens"))
    return found + _ignores(single) + _vote(single, [point for point in points if point.votes > 1])


def _ignores(single: Sequence[Point]) -> list[Comparison]:
    """The most ignored ends against none, under the same budget, question by question."""
    found = []
    for budget in dict.fromkeys(point.budget for point in single):
        mine = sorted((point for point in single if point.budget == budget), key=lambda point: point.n_ignore)
        none, most = mine[0], mine[-1]
        if none.n_ignore or not most.n_ignore:
            continue
        under = "" if budget is None else f" under a budget of {budget:,}"
        subject = f"ignoring up to {most.n_ignore} end{'s' * (most.n_ignore > 1)} of thinking{under}"
        spent = f"{np.mean(none.thinking_tokens):,.1f} -> {np.mean(most.thinking_tokens):,.1f} tokens of thinking"
        gain = _in_points(stats.paired_difference(_column(none.accuracy), _column(most.accuracy)))
        claims = (f"{_begun(subject)} helped", f"{_begun(subject)} hurt")
        found.append(Comparison(gain, subject, *claims, detail=f", {spent}"))
    return found


def _vote(single: Sequence[Point], votes: Sequence[Point]) -> list[Comparison]:
    """The largest vote within the single runs' range of tokens, against the line through them at its total tokens."""
    spent, accuracy_SQ = _frontier(single)
    within = [vote for vote in votes if spent[0] <= np.mean(vote.total_tokens) <= spent[-1]]
    if not within:
        return []
    vote = max(within, key=lambda vote: np.mean(vote.total_tokens))
    tokens = float(np.mean(vote.total_tokens))
    place, places = math.log(max(tokens, 1)), np.log(np.maximum(spent, 1))
    line_Q = [np.interp(place, places, accuracy) for accuracy in np.transpose(accuracy_SQ)]
    gain = _in_points(stats.paired_difference(_column(line_Q), _column(vote.accuracy)))
    subject = f"a majority vote of {vote.votes} instead of one answer"
    claims = (f"{_begun(subject)} raised accuracy", f"{_begun(subject)} lowered accuracy")
    return [Comparison(gain, subject, *claims, detail=f", both at {tokens:,.0f} total tokens a question")]


def _votes_apart(points: Sequence[Point]) -> list[str]:
    """That no vote can be compared at equal tokens, and what the best ones reach."""
    single, votes = [p for p in points if p.votes == 1], [p for p in points if p.votes > 1]
    if not votes or _vote(single, votes):
        return []
    spent, _ = _frontier(single)
    best, best_single = (max(some, key=lambda point: np.mean(point.accuracy)) for some in (votes, single))
    return [
        f"No vote spends as many tokens as the single runs ({spent[0]:,.0f} to {spent[-1]:,.0f} a question): the best "
        f"scored {100 * np.mean(best.accuracy):.1f} % with {best.votes} voters and {np.mean(best.total_tokens):,.0f} "
        f"tokens, the best single run {100 * np.mean(best_single.accuracy):.1f} %."
    ]


def _unmerged(figures: Mapping[str, Any]) -> list[str]:
    """The slope as the paper draws it, where merging points of nearly equal tokens changes it."""
    merged, all_points = figures["scaling"]["value"], figures["scaling_unmerged"]["value"]
    if all_points is None or (merged is not None and math.isclose(all_points, merged, rel_tol=1e-6, abs_tol=1e-6)):
        return []
    return [
        "Settings whose tokens differ by less than 1 % are one point of the slope; drawn through all of them, "
        f"as in the paper, it is {all_points:+.1f} points per doubling."
    ]


def _frontier(single: Sequence[Point]) -> tuple[list[float], list[np.ndarray]]:
    """(total tokens, accuracy of each question) of the single runs, by tokens, runs with the same tokens averaged."""
    by_tokens: dict[float, list[Sequence[float]]] = {}
    for point in single:
        by_tokens.setdefault(float(np.mean(point.total_tokens)), []).append(point.accuracy)
    spent = sorted(by_tokens)
    return spent, [np.mean(by_tokens[tokens], axis=0) for tokens in spent]


def _begun(words: str) -> str:
    return words[0].upper() + words[1:]


def _column(values: Sequence[float] | np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=float)[:, None]


def _in_points(share: Interval) -> Interval:
    value, low, high, p = _numbers(share)
    return Interval(100 * value, 100 * low, 100 * high, p=p)


def _numbers(effect: Interval) -> tuple[float, float, float, float]:
    """(value, low, high, p) of an effect, which has them all."""
    assert effect.value is not None and effect.low is not None and effect.high is not None and effect.p is not None
    return effect.value, effect.low, effect.high, effect.p


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
