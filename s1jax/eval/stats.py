"""Statistics of repeated, graded samples: pass@k, majority@k, intervals and tests clustered by question.

Everything takes one sequence per question (its samples), because the question is what is drawn at random; no JAX, and
nothing random: the same samples give the same figures. `docs/intervals.md` records how often the intervals cover.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

PerQuestion = Sequence[Sequence[float]] | np.ndarray
_MOST_SAMPLES = 1000
# Differences between accuracies are compared in steps of 1/960: exact for up to 6, and 8, 10, 12, 16, 32, 64 samples.
_STEPS = 960


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate and its confidence limits; `None`s with a `reason` where there is nothing to estimate.

    `p` is the p-value (two-sided) of a value that would be 0 without an effect, else None.
    """

    value: float | None
    low: float | None
    high: float | None
    reason: str | None = None
    p: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """`{"value", "low", "high"}`, with `reason` only where the value is null."""
        limits = {"value": self.value, "low": self.low, "high": self.high}
        return limits if self.reason is None else {**limits, "reason": self.reason}


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased chance that at least one of `k` samples is right, from `correct` right ones among `n`.

    1 - C(n-c, k) / C(n, k) (arXiv 2107.03374, section 2.1). Upstream's cov@k looks at the first k samples only.
    """
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} from {correct} right of {n} samples: needs 0 <= right <= n and 1 <= k <= n")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def majority_at_k(votes: Sequence[str | None], correct: Sequence[float], k: int) -> float:
    """Expected score of a majority vote of `k` samples drawn without replacement; exact.

    Equal answers vote together. Answers tied for first place share the win. A missing answer (None) has no vote; a draw
    in which nobody votes scores 0. Upstream takes the first k and breaks ties by first seen, so its maj@2 is pass@1.

    Args:
      votes: the answer under which each sample votes.
      correct: whether each sample is right, 0 to 1; answers that vote together count by their mean.
      k: voters, 1 to len(votes).

    Raises:
      ValueError: k or the number of samples (at most 1000) out of range.
    """
    n = len(votes)
    if not 1 <= k <= n <= _MOST_SAMPLES:
        raise ValueError(f"majority@{k} of {n} samples: needs 1 <= k <= n <= {_MOST_SAMPLES}")
    counts = collections.Counter(vote for vote in votes if vote is not None)
    right: dict[str, float] = collections.defaultdict(float)
    for vote, score in zip(votes, correct, strict=True):
        if vote is not None:
            right[vote] += score / counts[vote]
    blanks = n - sum(counts.values())
    score = 0.0
    for vote, share in right.items():
        if share > 0:
            others = [count for other, count in counts.items() if other != vote]
            score += share * sum(
                math.comb(counts[vote], m) * _ways(others, blanks, k - m, m) for m in range(1, min(k, counts[vote]) + 1)
            )
    return score / math.comb(n, k)


def _ways(others: Sequence[int], blanks: int, draws: int, most: int) -> float:
    """Ways to draw `draws` samples of the others, at most `most` of one answer; t answers at `most` weigh 1/(t+1)."""
    ways = np.zeros((draws + 1, draws // most + 1))  # [drawn so far, answers that have exactly `most`]
    ways[: blanks + 1, 0] = [math.comb(blanks, drawn) for drawn in range(min(blanks, draws) + 1)]
    for count in others:
        after = np.zeros_like(ways)
        for drawn in range(min(most, count, draws) + 1):
            part = math.comb(count, drawn) * ways[: draws + 1 - drawn]
            if drawn < most:
                after[drawn:] += part
            else:
                after[drawn:, 1:] += part[:, :-1]
        ways = after
    return float(ways[draws] @ (1.0 / np.arange(1, ways.shape[1] + 1)))


def question_means(samples: PerQuestion) -> np.ndarray:
    """Mean of each question's samples, [question]. Raises ValueError for a question without any."""
    if len(samples) == 0 or min(map(len, samples)) == 0:
        raise ValueError(f"{len(samples)} questions, some without a sample: every question needs at least one")
    if len(set(map(len, samples))) == 1:
        return np.asarray(samples, dtype=float).mean(axis=1)
    return np.array([np.mean(np.asarray(row, dtype=float)) for row in samples])


def clustered(samples: PerQuestion, level: float = 0.95) -> Interval:
    """Mean over questions, each between 0 and 1, with the interval of `mean_limits`."""
    means = question_means(samples)
    low, high = mean_limits(means, level)
    return Interval(float(means.mean()), float(low), float(high))


def mean_limits(means: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Limits of the mean of questions' means (0 to 1), over the last axis.

    Clopper and Pearson's limits for as many questions with one sample each as would give the same standard error (Korn
    and Graubard, Survey Methodology 24, 1998). For means of 0 and 1 that is the exact binomial interval.

    The variance of few questions is often too small by chance, above all near 0 and 1: there a question that would
    enlarge it is rare. It is therefore averaged with that of one question that is wholly right or wrong. The weight of
    the measured one is `carriers`, the number of questions, all right or all wrong, that would give the relative error
    that was measured: large where the questions agree on a middling rate, about 1 where one question holds all.
    """
    n, mean, alpha = means.shape[-1], np.clip(means.mean(axis=-1), 0, 1), (1 - level) / 2
    variance, most = (means.var(axis=-1, ddof=1) if n > 1 else np.zeros_like(mean)), mean * (1 - mean)
    is_known = (variance > 0) & (most > 0) & (np.ptp(means, axis=-1) > 0)
    ratio = np.where(is_known, variance / np.where(is_known, most, 1), 1)
    carriers = np.where(is_known, n * most / ratio, 0)
    ratio = (carriers * np.minimum(ratio, 1) + 1) / (carriers + 1)
    if n > 1:
        ratio = ratio * (special.stdtrit(n - 1, alpha) / special.ndtri(alpha)) ** 2
    count = n / np.minimum(ratio, 1)  # a question's variance is at most that of one that is wholly right or wrong
    right, wrong = count * mean, count * (1 - mean)
    low = np.where(right > 0, special.betaincinv(np.where(right > 0, right, 1), wrong + 1, alpha), 0)
    high = np.where(wrong > 0, special.betaincinv(right + 1, np.where(wrong > 0, wrong, 1), 1 - alpha), 1)
    return low, high


def effect_limits(
    values: np.ndarray, largest: float | np.ndarray, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(low, high, p) of the mean of questions' differences or slopes, over the last axis, by t.

    Only questions on which the settings differ say how much they differ: the degrees of freedom are those of their
    number, each counted by its size (Kish), at least 2. One question more that differs by `largest` (the most there can
    be) enters the variance, the less the more questions differ; without it, no difference in 30 questions would be
    certainty.
    """
    n, mean = values.shape[-1], values.mean(axis=-1)
    squares = (values**2).sum(axis=-1)
    differing = np.abs(values).sum(axis=-1) ** 2 / np.where(squares > 0, squares, 1)
    variance = (values.var(axis=-1, ddof=1) if n > 1 else 0) + largest**2 / (n * (1 + differing))
    error, freedom = np.sqrt(variance / n), np.maximum(differing - 1, 2)
    reach = -special.stdtrit(freedom, (1 - level) / 2) * error
    p = 2 * special.stdtr(freedom, -np.abs(mean) / np.where(error > 0, error, 1))
    return np.maximum(mean - reach, -largest), np.minimum(mean + reach, largest), p


def paired_difference(first: PerQuestion, second: PerQuestion, *, level: float = 0.95) -> Interval:
    """Mean of second - first over the same questions in the same order, with its interval and an exact p-value.

    Raises:
      ValueError: different numbers of questions.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} questions cannot be paired: give both for the same questions")
    difference = question_means(second) - question_means(first)
    low, high, _ = effect_limits(difference, 1.0, level)
    return Interval(float(difference.mean()), float(low), float(high), p=sign_flip_p(difference))


def sign_flip_p(differences: Sequence[float] | np.ndarray) -> float:
    """Exact two-sided p-value of paired differences (-1 to 1): their sum against all ways to flip their signs.

    Without an effect each difference is as likely with either sign (Fisher 1935). For one sample a question it is
    McNemar's exact test.
    """
    steps = np.rint(np.asarray(differences, dtype=float) * _STEPS).astype(int)
    steps = steps[steps != 0]
    if not len(steps):
        return 1.0
    steps = steps // np.gcd.reduce(steps)
    chance = np.ones(1)  # of each sum of the differences that are positive
    for size in np.sort(np.abs(steps)):
        after = np.zeros(len(chance) + size)
        after[: len(chance)] += chance / 2
        after[size:] += chance / 2
        chance = after
    seen = int(steps[steps > 0].sum())
    return min(1.0, 2 * float(min(chance[: seen + 1].sum(), chance[seen:].sum())))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted so that of all claims made at once the chance of a single false one keeps to the level."""
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = least
    return adjusted


@dataclasses.dataclass(frozen=True)
class SamplePlan:
    """How much sampling is surely enough to tell two settings apart whose accuracies differ by `difference`.

    Attributes:
      total: samples of each setting over all questions.
      per_question: of each question, on the questions at hand.
      assumed: whether the noise within a question had to be assumed and was not measured.
    """

    difference: float
    total: int
    per_question: int
    assumed: bool


def samples_needed(samples: PerQuestion, difference: float, *, level: float = 0.95, power: float = 0.8) -> SamplePlan:
    """Samples that show a `difference` in accuracy (0 to 1) between two settings on the same questions.

    With a share p_q right of question q, the difference of two means over N samples each has the variance
    2 mean(p_q (1 - p_q)) / N if both settings sample the same questions. The upper limit of its interval is taken for
    that mean, so that few questions do not promise too much; it is at most p (1 - p), at that overall accuracy p within
    its interval which is nearest to one half. That bound stands alone where the samples of every question agree (one
    each, or greedy ones, which are copies of each other), as they show nothing of the noise.

    Raises:
      ValueError: difference not in (0, 1].
    """
    if not 0 < difference <= 1:
        raise ValueError(f"a difference of {difference} cannot be planned for: give a share above 0, at most 1")
    means = question_means(samples)
    repeated = [(p, len(row)) for p, row in zip(means, samples, strict=True) if len(row) > 1]
    noise = np.array([p * (1 - p) * m / (m - 1) for p, m in repeated])
    low, high = mean_limits(means, level)
    nearest = float(np.clip(0.5, low, high))
    most, is_assumed = nearest * (1 - nearest), not noise.any()
    if not is_assumed:
        largest = max(m / (m - 1) for _, m in repeated) / 4
        most = min(most, largest * float(mean_limits(noise / largest, level)[1]))
    quantiles = special.ndtri(0.5 + level / 2) + special.ndtri(power)
    total = max(1, math.ceil(2 * most * (quantiles / difference) ** 2))
    return SamplePlan(difference, total, math.ceil(total / len(means)), is_assumed)
