"""Control, Scaling and Performance of a set of runs (arXiv 2501.19393, section 3.2), with intervals over questions.

The paper's numbers come out with tokens on a log2 axis and accuracy in percentage points; the slope per 1,000 tokens is
given beside it under its own name. Knows points, not files, and no JAX.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from s1jax.eval import stats
from s1jax.eval.stats import Interval

MERGED_BELOW = 0.01
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
    return float(_slopes(np.log2([tokens]), np.array([accuracy]))[0])


def linear_slope(tokens: Sequence[float], accuracy: Sequence[float]) -> float:
    """Mean slope over all pairs, in percentage points per 1,000 tokens."""
    return float(_slopes(np.array([tokens]) / 1000, np.array([accuracy]))[0])


def _slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean over pairs of columns with different x: two [replicate, point] -> [replicate]; NaN where no pair differs."""
    first, second = np.array(list(itertools.combinations(range(x.shape[1]), 2))).T
    run, rise = x[:, second] - x[:, first], y[:, second] - y[:, first]
    usable = np.isfinite(run) & (run != 0)
    slope = np.where(usable, rise, 0) / np.where(usable, run, 1)
    n = usable.sum(axis=1)
    return np.where(n > 0, 100 * slope.sum(axis=1) / np.maximum(n, 1), np.nan)


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


def scaling(points: Sequence[Point], *, linear: bool = False, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean pairwise slope of accuracy over thinking tokens, with a bootstrap interval over questions.

    All points are resampled with the same questions. Which points are merged is settled once, on all questions.
    """
    groups = merged([float(np.mean(point.thinking_tokens)) for point in points])
    if len(groups) < 2:
        return Interval(None, None, None, f"{len(groups)} of {len(points)} points are left to draw a slope through")

    def slope(tokens: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
        x = np.stack([tokens[:, group].mean(axis=1) for group in groups], axis=1)
        y = np.stack([accuracy[:, group].mean(axis=1) for group in groups], axis=1)
        return _slopes(x / 1000 if linear else np.log2(np.maximum(x, 1e-9)), y)

    return _over_questions(points, slope, resamples, seed)


def performance(points: Sequence[Point], *, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Accuracy of the best point, 0 to 1. Its interval is that of the maximum, so it shares the maximum's optimism."""
    return _over_questions(points, lambda _, accuracy: accuracy.max(axis=1), resamples, seed)


def control(points: Sequence[Point], *, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Share of rows whose thinking keeps to the limits of their setting; settings without limits are left out."""
    limited = [dataclasses.replace(point, accuracy=point.within) for point in points if point.within is not None]
    if not limited:
        return Interval(None, None, None, "no setting limits thinking")
    return _over_questions(limited, lambda _, within: within.mean(axis=1), resamples, seed)


def control_of_runs(points: Sequence[Point]) -> Interval:
    """The paper's Control: share of runs whose mean thinking tokens keep to the budget; too few runs for limits."""
    kept = [np.mean(point.thinking_tokens) <= point.budget for point in points if point.budget is not None]
    if not kept:
        return Interval(None, None, None, "no setting has a budget")
    return Interval(float(np.mean(kept)), None, None)


def _over_questions(
    points: Sequence[Point], statistic: Callable[[np.ndarray, np.ndarray], np.ndarray], resamples: int, seed: int
) -> Interval:
    tokens = np.array([point.thinking_tokens for point in points], dtype=float).T  # [question, point]
    accuracy = np.array([point.accuracy for point in points], dtype=float).T
    value = statistic(tokens.mean(axis=0)[None], accuracy.mean(axis=0)[None])[0]
    n = len(tokens)
    blocks = stats.resamples(n, resamples, seed)
    replicates = np.concatenate([statistic(drawn @ tokens / n, drawn @ accuracy / n) for drawn in blocks])
    return stats.percentile_interval(float(value), replicates)


def to_json(points: Sequence[Point], *, resamples: int = 10_000, seed: int = 0, **described: Any) -> dict[str, Any]:
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
    options: Any = {"resamples": resamples, "seed": seed}
    return {
        "format": FORMAT,
        **described,
        "questions": sizes.pop(),
        "units": {
            "accuracy": "share, 0 to 1",
            "scaling": "percentage points per doubling of thinking tokens",
            "scaling_per_1000": "percentage points per 1,000 thinking tokens",
            "control": "share of rows within their limits",
            "control_of_runs": "share of runs whose mean is within the budget",
        },
        "control": control(single, **options).to_dict(),
        "control_of_runs": control_of_runs(single).to_dict(),
        "scaling": scaling(single, **options).to_dict(),
        "scaling_per_1000": scaling(single, linear=True, **options).to_dict(),
        "performance": performance(single, **options).to_dict(),
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
