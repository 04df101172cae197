"""What a method is: how many samples of a question are asked for, and what they come to together. No JAX, no engine.

A control decides how one row thinks; a method decides what is made of several rows. Every method goes with every
control.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

from s1jax.config import BadInput
from s1jax.engine.sampling import SamplingConfig


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """What is made of the samples of a prompt.

    Attributes:
      kind: `single`: each of `sampling.n` samples stands for itself. `vote`: the majority of `n` samples is the answer.
      n: voters; None: 16.
    """

    kind: Literal["single", "vote"] = "single"
    n: int | None = None


@dataclasses.dataclass(frozen=True)
class Mark:
    """What a method has to know of one sample.

    Attributes:
      vote: the spelling under which its answer votes (`s1jax.grading.grade.vote_key`); None without an answer.
      correct: whether it is right.
      thinking_tokens, total_tokens: ids of thinking; of thinking and answer.
    """

    vote: str | None
    correct: bool
    thinking_tokens: int
    total_tokens: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the samples of one question come to: a score from 0 to 1, and what was spent on it."""

    accuracy: float
    thinking_tokens: float
    total_tokens: float


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to use samples.

    Attributes:
      name: as in the registry.
      samples: how many samples of each prompt are needed. Raises BadInput for settings that contradict each other.
      outcome: what they come to.
      joint: the samples of a question give one answer, so the tokens of all of them are spent on it.
    """

    name: str
    samples: Callable[[MethodConfig, SamplingConfig], int]
    outcome: Callable[[Sequence[Mark]], Outcome]
    joint: bool


def refuse_copies(n: int, sampling: SamplingConfig) -> int:
    """`n`, if that many samples can differ. Raises BadInput for several greedy samples: they would be copies."""
    if n < 1:
        raise BadInput(f"{n} samples of each prompt are asked for; give at least 1")
    if n > 1 and sampling.temperature == 0:
        raise BadInput(
            f"{n} samples at sampling.temperature=0 are {n} copies of one; set sampling.temperature, or take one"
        )
    return n
