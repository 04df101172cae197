"""Majority vote: the answer that most samples give. What all voters spend is what the answer costs."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Literal

from s1jax.config import BadInput, Positive
from s1jax.engine.sampling import SamplingConfig
from s1jax.methods.method import Mark, Method, Outcome, complete_all, refuse_copies


@dataclasses.dataclass(frozen=True)
class VoteConfig:
    """The answer of most samples is the answer.

    Attributes:
      kind: `vote`.
      n: voters.
    """

    kind: Literal["vote"] = "vote"
    n: Positive = 16


def samples(config: VoteConfig, sampling: SamplingConfig) -> int:
    """`method.n`."""
    if sampling.n != 1:
        raise BadInput(f"sampling.n={sampling.n} says nothing to method.kind=vote; set method.n, the number of voters")
    return refuse_copies(config.n, sampling)


def winners(votes: Sequence[str | None]) -> tuple[str, ...]:
    """The answers with most votes, by first appearance; several when tied, none when nobody voted."""
    counts = collections.Counter(vote for vote in votes if vote is not None)
    return tuple(vote for vote, count in counts.items() if count == max(counts.values()))


def outcome(marks: Sequence[Mark]) -> Outcome:
    """The majority's score (tied answers share it), and the tokens of all voters together."""
    scores = []
    for winner in winners([mark.vote for mark in marks]):
        behind = [mark.correct for mark in marks if mark.vote == winner]
        scores.append(sum(behind) / len(behind))
    return Outcome(
        sum(scores) / len(scores) if scores else 0.0,
        float(sum(mark.thinking_tokens for mark in marks)),
        float(sum(mark.total_tokens for mark in marks)),
    )


METHOD = Method(VoteConfig, samples, complete_all, outcome, joint=True)
