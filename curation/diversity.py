"""Draw the final rows: the preselected ones, then domain by domain, long traces first.

s1's Algorithm 1 (arXiv 2501.19393) and data/filter.ipynb, cells 14 to 21: a domain is drawn uniformly, then one of its
questions with probability proportional to 2^-rank, rank 0 being the longest trace. Upstream draws unseeded, from sets;
here the draw is a function of the seed and the pool.
"""

import collections
import dataclasses
import math
import random
from collections.abc import Sequence
from typing import Literal

from curation.stage import Candidate, Selection, Stage, Tools, split
from s1jax.config import BadInput, Count, Fraction, Positive

NO_DOMAIN = "none"


@dataclasses.dataclass(frozen=True)
class DiversityConfig:
    """The draw of the final rows: a domain at random, then a row of it, long traces first.

    Attributes:
      total: rows in the end; None keeps all.
      uniform: up to this many rows, domains are drawn uniformly; afterwards by `tail`.
      tail: `uniform`, or `benchmark` (upstream, not in the paper): by the domains of `tail_sources` in the pool.
      tail_sources: the two sources of `tail=benchmark`.
      tail_share: weight of the first of `tail_sources` in shares of the second's.
      preselect: take all rows known to be correct of `any_length` sources, and of `long` sources above `long_tokens`.
      any_length: sources preselected whatever the length: texts that a source's name must hold.
      long: sources of which long traces are preselected: texts that a source's name must hold.
      long_tokens: above this `thinking_length` a trace is long.
      noop_draws: preselected rows stay among those that can be drawn, where drawing them adds nothing (upstream).
    """

    total: Positive | None = 1000
    uniform: Count = 700
    tail: Literal["uniform", "benchmark"] = "uniform"
    tail_sources: tuple[str, str] = ("Idavidrein/gpqa", "qq8933/AIME_1983_2024")
    tail_share: Fraction = 0.5
    preselect: bool = True
    any_length: tuple[str, ...] = ("Idavidrein/gpqa", "qq8933/AIME_1983_2024")
    long: tuple[str, ...] = ("openaimath",)
    long_tokens: Count = 5600
    noop_draws: bool = False


def select(candidates: Sequence[Candidate], config: DiversityConfig, tools: Tools) -> Selection:
    """All of the pool if it is no larger than `total`. Raises BadInput for counts that contradict each other."""
    if config.total is None:
        return Selection(tuple(candidates), ())
    if not 0 <= config.uniform or config.total < 1:
        raise BadInput(
            f"diversity.total={config.total} must be above 0 and diversity.uniform={config.uniform} not below 0"
        )
    chosen = preselected(candidates, config)
    pools = _pools(candidates, chosen, config)
    weights = tail_weights(candidates, config)
    rng = random.Random(tools.seed)
    domains = sorted(pools)
    while len(chosen) < config.total and pools:
        if len(chosen) < config.uniform or config.tail == "uniform":
            domain = domains[int(rng.random() * len(domains))]
        else:
            open_ = [(name, weight) for name, weight in weights if name in pools]
            if not open_:
                break
            domain = _weighted(open_, rng)
        pool = pools[domain]
        chosen.add(pool.pop(draw_rank(rng.random(), len(pool))))
        if not pool:
            del pools[domain]
            domains.remove(domain)

    def judge(candidate: Candidate) -> tuple[str, str] | None:
        if candidate.id in chosen:
            return None
        return (
            "not drawn",
            f"of domain {_domain(candidate)}, when {config.total} rows were complete or no domain was left",
        )

    return split(candidates, judge)


def preselected(candidates: Sequence[Candidate], config: DiversityConfig) -> set[str]:
    """Ids of the rows that need no draw (data/filter.ipynb, cell 14)."""
    if not config.preselect:
        return set()

    def is_taken(candidate: Candidate) -> bool:
        source = candidate.question.source
        is_long = (candidate.thinking_length or 0) > config.long_tokens
        return any(name in source for name in config.any_length) or (
            is_long and any(name in source for name in config.long)
        )

    return {candidate.id for candidate in candidates if candidate.correct and is_taken(candidate)}


def draw_rank(u: float, n: int) -> int:
    """The rank, of n with probabilities proportional to 2^-rank, at which their cumulative sum passes `u` in [0, 1).

    Inverted in log space: upstream's `2.0 ** -rank` is 0 beyond rank 1074.
    """
    return min(n - 1, int(-math.log2(1.0 - u * (1.0 - 2.0**-n))))


def _domain(candidate: Candidate) -> str:
    return candidate.question.domain or NO_DOMAIN


def _pools(candidates: Sequence[Candidate], chosen: set[str], config: DiversityConfig) -> dict[str, list[str]]:
    """By domain, the ids that can be drawn, longest trace first, ties by id."""
    pools: dict[str, list[str]] = collections.defaultdict(list)
    for candidate in sorted(candidates, key=lambda c: (-(c.thinking_length or 0), c.id)):
        if config.noop_draws or candidate.id not in chosen:
            pools[_domain(candidate)].append(candidate.id)
    return dict(pools)


def tail_weights(candidates: Sequence[Candidate], config: DiversityConfig) -> list[tuple[str, int]]:
    """Weights of the domains in the tail (data/filter.ipynb, cell 17): the first source's counts scaled and floored."""
    first, second = (
        collections.Counter(_domain(candidate) for candidate in candidates if candidate.question.source == name)
        for name in config.tail_sources
    )
    scale = config.tail_share * second.total() / first.total() if first.total() else 0.0
    scaled = collections.Counter({domain: int(count * scale) for domain, count in first.items()})
    return sorted((scaled + second).items())


def _weighted(weights: Sequence[tuple[str, int]], rng: random.Random) -> str:
    left = rng.random() * sum(weight for _, weight in weights)
    for name, weight in weights:
        left -= weight
        if left < 0:
            return name
    return weights[-1][0]


STAGE = Stage(select)
