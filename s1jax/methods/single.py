"""Every sample stands for itself; several of a question are averaged."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from s1jax.engine.sampling import SamplingConfig
from s1jax.methods.method import Mark, Method, Outcome, complete_all, refuse_copies


@dataclasses.dataclass(frozen=True)
class SingleConfig:
    """Each of `sampling.n` samples stands for itself.

    Attributes:
      kind: `single`.
    """

    kind: Literal["single"] = "single"


def samples(config: SingleConfig, sampling: SamplingConfig) -> int:
    """`sampling.n`."""
    return refuse_copies(sampling.n, sampling)


def outcome(marks: Sequence[Mark]) -> Outcome:
    """Means over the samples."""
    return Outcome(
        sum(mark.correct for mark in marks) / len(marks),
        sum(mark.thinking_tokens for mark in marks) / len(marks),
        sum(mark.total_tokens for mark in marks) / len(marks),
    )


METHOD = Method(SingleConfig, samples, complete_all, outcome, joint=False)
