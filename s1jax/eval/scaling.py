"""Control, Scaling and Performance of a set of runs (arXiv 2501.19393, section 3.2), with intervals over questions.

The paper's numbers come out with tokens on a log2 axis and accuracy in percentage points; the slope per 1,000 tokens is
given beside it under its own name. Knows points, not files, and no JAX.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from s1jax.eval import stats
from s1jax.eval.stats import Interval

MERGED_BELOW = 0.01
FEWEST_QUESTIONS = 10  # fewer carry no slope and no claim
FORMAT = "s1jax.scaling/1"


@dataclasses.dataclass(frozen=True)
class Point:
    """One setting on all questions; each tuple holds one number a question, in the same order for every point.

    Attributes:
      label: what a reader calls the setting.
      budget: its limit on thinking tokens, or None.
      n_ignore: how many ends of thinking it ignores.
      thinking_tokens: mean over the question's samples.
      total_tokens: thinking and answer.
      accuracy: share of the question's samples that are right.
      within: share of the question's samples whose thinking keeps to the limits; None without limits.
      votes: samples that vote together; thinking_tokens and total_tokens are those of all voters.
    """

    label: str
    budget: int | None
    thinking_tokens: tuple[float, ...]
    total_tokens: tuple[float, ...]
    accuracy: tuple[float, ...]
    within: tuple[float, ...] | None = None
    n_ignore: int = 0
    votes: int = 1


def log2_slope(tokens: Sequence[float], accuracy: Sequence[float]) -> float:
    """Mean slope over all pairs of points, in percentage points per doubling; tokens above 0, accuracy 0 to 1."""
    return float(100 * _slope_weights(np.log2(tokens)) @ np.array(accuracy))


def linear_slope(tokens: Sequence[float], accuracy: Sequence[float]) -> float:
    """Mean slope over all pairs, in percentage points per 1,000 tokens."""
    return float(100 * _slope_weights(np.array(tokens) / 1000) @ np.array(accuracy))


def _pairs(x: np.ndarray) -> list[tuple[int, int]]:
    return [(i, j) for i, j in itertools.combinations(range(len(x)), 2) if x[i] != x[j]]


def _slope_weights(x: np.ndarray) -> np.ndarray:
    """What each point's y counts in the mean slope over all pairs with different x."""
    weights, pairs = np.zeros(len(x)), _pairs(x)
    for i, j in pairs:
        weights[j] += 1 / (x[j] - x[i]) / len(pairs)
        weights[i] -= 1 / (x[j] - x[i]) / len(pairs)
    return weights


def _slope_by_x(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Derivative of the mean slope by each point's x."""
    derivative, pairs = np.zeros(len(x)), _pairs(x)
    for i, j in pairs:
        part = (y[j] - y[i]) / (x[j] - x[i]) ** 2 / len(pairs)
        derivative[i] += part
        derivative[j] -= part
    return derivative


def merged(tokens: Sequence[float]) -> list[list[int]]:
    """Indices of the points in the slope, grouped: those within 1 % of a group's fewest tokens are one point.

    Points below one token have no place on a log axis and are left out.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(tokens)), key=lambda i: tokens[i]):
        if tokens[i] < 1:
            continue
        if groups and tokens[i] < tokens[groups[-1][0]] * (1 + MERGED_BELOW):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def scaling(points: Sequence[Point], *, linear: bool = False, merge: bool = True) -> Interval:
    """Mean pairwise slope of accuracy over thinking tokens, with a t interval over the questions' own slopes.

    Args:
      linear: per 1,000 tokens, not per doubling.
      merge: points within 1 % in tokens are one point. The paper does not merge: two of its points 0.7 % apart then
        make most of a slope.

    Which points are merged is settled once, on all questions; so is who is below one token. That the points' tokens are
    means over questions themselves enters to first order.
    """
    n_questions = len(points[0].accuracy)
    if n_questions < FEWEST_QUESTIONS:
        few = f"{n_questions} question{'s' * (n_questions != 1)}, a slope needs at least {FEWEST_QUESTIONS}"
        return Interval(None, None, None, few)
    means = [float(np.mean(point.thinking_tokens)) for point in points]
    groups = merged(means) if merge else [[i] for i, tokens in enumerate(means) if tokens >= 1]
    different = len({float(np.mean([means[i] for i in group])) for group in groups})
    if different < 2:
        return Interval(None, None, None, f"{different} of {len(points)} points are left to draw a slope through")
    tokens_QG = np.array([np.mean([points[i].thinking_tokens for i in group], axis=0) for group in groups]).T
    accuracy_QG = np.array([np.mean([points[i].accuracy for i in group], axis=0) for group in groups]).T
    tokens = tokens_QG.mean(axis=0)
    x, by_token = (tokens / 1000, 1 / 1000) if linear else (np.log2(tokens), 1 / (tokens * math.log(2)))
    weights, derivative = _slope_weights(x), _slope_by_x(x, accuracy_QG.mean(axis=0))
    slopes_Q = 100 * (accuracy_QG @ weights + ((tokens_QG - tokens) * by_token) @ derivative)
    low, high, p = stats.effect_limits(slopes_Q, 100 * float(weights[weights > 0].sum()))
    return Interval(float(slopes_Q.mean()), float(low), float(high), p=float(p))


def performance(points: Sequence[Point], *, level: float = 0.95) -> Interval:
    """Accuracy of the best point, 0 to 1, with an interval of the best true accuracy.

    The truth is at least each point's own lower limit (Bonferroni's over all points, since the best is chosen) and at
    most the largest upper limit. The value itself is the luckiest of several and so a little too high on average.
    """
    accuracy_PQ = np.array([point.accuracy for point in points], dtype=float)
    low, _ = stats.mean_limits(accuracy_PQ, 1 - (1 - level) / len(points))
    _, high = stats.mean_limits(accuracy_PQ, level)
    return Interval(float(accuracy_PQ.mean(axis=1).max()), float(low.max()), float(high.max()))


def control(points: Sequence[Point]) -> Interval:
    """Share of rows whose thinking keeps to the limits of their setting; settings without limits are left out."""
    limited = [point.within for point in points if point.within is not None]
    if not limited:
        return Interval(None, None, None, "no setting limits thinking")
    return stats.clustered(np.array(limited).T)


def control_of_runs(points: Sequence[Point]) -> Interval:
    """The paper's Control: share of runs whose mean thinking tokens keep to the budget; too few runs for limits."""
    kept = [np.mean(point.thinking_tokens) <= point.budget for point in points if point.budget is not None]
    if not kept:
        return Interval(None, None, None, "no setting has a budget")
    return Interval(float(np.mean(kept)), None, None)


def to_json(points: Sequence[Point], **described: Any) -> dict[str, Any]:
    """The content of `scaling.json`.

    Args:
      points: single runs (votes 1) and, beside them, majority votes; the three figures are of the single runs.
      described: further fields (benchmark, model).

    Raises:
      ValueError: no single run, or points over different numbers of questions.
    """
    single = [point for point in points if point.votes == 1]
    sizes = {len(point.accuracy) for point in points}
    if not single or len(sizes) != 1:
        raise ValueError(
            f"{len(single)} single runs over {sorted(sizes)} questions: needs one run, and the same questions"
        )
    groups = merged([float(np.mean(point.thinking_tokens)) for point in single])
    place = {i: number for number, group in enumerate(groups) for i in group}
    return {
        "format": FORMAT,
        **described,
        "questions": sizes.pop(),
        "units": {
            "accuracy": "share, 0 to 1",
            "scaling": "percentage points per doubling of thinking tokens",
            "scaling_unmerged": "the same over all points, those within 1 % in tokens not merged (as in the paper)",
            "scaling_per_1000": "percentage points per 1,000 thinking tokens",
            "control": "share of rows within their limits",
            "control_of_runs": "share of runs whose mean is within the budget",
        },
        "control": control(single).to_dict(),
        "control_of_runs": control_of_runs(single).to_dict(),
        "scaling": scaling(single).to_dict(),
        "scaling_unmerged": scaling(single, merge=False).to_dict(),
        "scaling_per_1000": scaling(single, linear=True).to_dict(),
        "performance": performance(single).to_dict(),
        "points": [{**_shown(point), "slope_group": place.get(i)} for i, point in enumerate(single)],
        "votes": [{**_shown(point), "votes": point.votes} for point in points if point.votes > 1],
    }


def _shown(point: Point) -> dict[str, Any]:
    interval = stats.clustered([[value] for value in point.accuracy])
    return {
        "label": point.label,
        "budget": point.budget,
        "n_ignore": point.n_ignore,
        "thinking_tokens": float(np.mean(point.thinking_tokens)),
        "total_tokens": float(np.mean(point.total_tokens)),
        "accuracy": interval.value,
        "interval": {"low": interval.low, "high": interval.high},
    }
