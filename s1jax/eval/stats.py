"""Statistics of repeated, graded samples: pass@k, majority@k, and intervals clustered by question.

Everything takes one sequence per question (its samples), because the question is what is drawn at random; no JAX.
"""

import collections
import dataclasses
import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

PerQuestion = Sequence[Sequence[float]] | np.ndarray
_MOST_SAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate and its confidence limits; `None`s with a `reason` where there is nothing to estimate."""

    value: float | None
    low: float | None
    high: float | None
    reason: str | None = None

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
    return np.array([np.mean(np.asarray(row, dtype=float)) for row in samples])


def clustered(samples: PerQuestion, level: float = 0.95) -> Interval:
    """Mean over questions with its normal interval; the standard error is that of the questions' means.

    Sampling one question more often narrows the interval only as far as the question's own noise went into it. Where
    all questions agree (all 0 or all 1) the variance says nothing and Wilson's interval is given instead.
    """
    means = question_means(samples)
    n, mean, z = len(means), float(means.mean()), NormalDist().inv_cdf(0.5 + level / 2)
    if n == 1 or means.std() == 0:
        centre, spread = (mean + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n)
        spread *= math.sqrt(max(mean * (1 - mean), 0) / n + z * z / (4 * n * n))
        return Interval(mean, max(0.0, min(mean, centre - spread)), min(1.0, max(mean, centre + spread)))
    error = z * float(means.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, max(0.0, mean - error), min(1.0, mean + error))


def resamples(n: int, count: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of `n` questions is drawn in each of `count` resamples, in blocks [<= 1000, n], by the seed."""
    generator = np.random.Generator(np.random.PCG64(seed))
    for start in range(0, count, 1000):
        yield generator.multinomial(n, np.full(n, 1 / n), size=min(1000, count - start))


def percentile_interval(value: float, replicates: np.ndarray, level: float = 0.95) -> Interval:
    """Percentile bootstrap interval around `value`; replicates that are not finite are left out."""
    finite = replicates[np.isfinite(replicates)]
    if not len(finite):
        return Interval(None, None, None, "no resample of the questions gives a finite value")
    low, high = np.quantile(finite, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(value, float(low), float(high))


def bootstrapped(samples: PerQuestion, *, level: float = 0.95, count: int = 10_000, seed: int = 0) -> Interval:
    """Mean over questions with a percentile interval from resampled questions."""
    means = question_means(samples)
    replicates = np.concatenate([drawn @ means / len(means) for drawn in resamples(len(means), count, seed)])
    return percentile_interval(float(means.mean()), replicates, level)


def paired_difference(first: PerQuestion, second: PerQuestion, *, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean of second - first over the same questions in the same order, with a bootstrap interval over questions.

    Raises:
      ValueError: different numbers of questions.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} questions cannot be paired: give both for the same questions")
    difference = question_means(second) - question_means(first)
    return bootstrapped([[value] for value in difference], level=level, seed=seed)


@dataclasses.dataclass(frozen=True)
class SamplePlan:
    """How much sampling tells two settings apart whose accuracies differ by `difference`.

    Attributes:
      total: samples of each setting over all questions.
      per_question: of each question, on the questions at hand.
      assumed: whether the noise within a question had to be assumed (one sample each) and not measured.
    """

    difference: float
    total: int
    per_question: int
    assumed: bool


def samples_needed(samples: PerQuestion, difference: float, *, level: float = 0.95, power: float = 0.8) -> SamplePlan:
    """Samples that show a `difference` in accuracy (0 to 1) between two settings on the same questions.

    With a share p_q right of question q, the difference of two means over N samples each has the variance
    2 mean(p_q (1 - p_q)) / N if both settings sample the same questions. One sample a question cannot show p_q: then
    p (1 - p) of the overall accuracy stands for it, which is the most it can be.

    Raises:
      ValueError: difference not in (0, 1].
    """
    if not 0 < difference <= 1:
        raise ValueError(f"a difference of {difference} cannot be planned for: give a share above 0, at most 1")
    means = question_means(samples)
    repeated = [(p, len(row)) for p, row in zip(means, samples, strict=True) if len(row) > 1]
    mean = float(means.mean())
    noise = float(np.mean([p * (1 - p) * m / (m - 1) for p, m in repeated])) if repeated else mean * (1 - mean)
    quantiles = NormalDist().inv_cdf(0.5 + level / 2) + NormalDist().inv_cdf(power)
    total = max(1, math.ceil(2 * noise * (quantiles / difference) ** 2))
    return SamplePlan(difference, total, math.ceil(total / len(means)), assumed=not repeated)
