"""What a method is: how it drives the rows of one question, and what they come to together.

A control decides how one row thinks; a method decides which rows are asked for and what is made of them. Every method
goes with every control. A method is an async function over a `Task`; thousands of them run at once over one engine.
"""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from s1jax.config import BadInput
from s1jax.engine.sampling import SamplingConfig


@dataclasses.dataclass(frozen=True)
class Mark:
    """What a method has to know of one graded sample.

    Attributes:
      vote: the answer that it votes for, spelled as the first equal one; None without an answer.
      correct: whether it is right.
      thinking_tokens, total_tokens: tokens of thinking; of thinking and answer.
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
    """An entry of the registry.

    Attributes:
      config: frozen dataclass of what a user may set, with a field `kind` whose default is the key of the registry.
      samples: config, sampling -> how many completions of each prompt there will be, numbered from 0. Raises BadInput
        for settings that contradict each other.
      run: asks a `s1jax.methods.task.Task` for each of them, in whatever order and rounds. What it decides, it decides
        by what the completions are and by their numbers, never by which came first, so that it decides the same again.
      outcome: marks of all samples, in the order of their numbers -> what they come to.
      joint: the samples of a question give one answer, so the tokens of all of them are spent on it.
      is_one_round: every sample completes the prompt itself, so that stored ones can be compared with it.
    """

    config: type
    samples: Callable[[Any, SamplingConfig], int]
    run: Callable[[Any], Awaitable[None]]
    outcome: Callable[[Sequence[Mark]], Outcome]
    joint: bool
    is_one_round: bool = True


async def complete_all(task: Any) -> None:
    """`Method.run` where every sample completes the prompt itself, all at once.

    The first error is raised when all have ended.
    """
    asked = (task.complete(sample) for sample in range(task.job.n_samples))
    for result in await asyncio.gather(*asked, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def refuse_copies(n: int, sampling: SamplingConfig) -> int:
    """`n`, if that many samples can differ. Raises BadInput for several greedy samples: they would be copies."""
    if n < 1:
        raise BadInput(f"{n} samples of each prompt are asked for; give at least 1")
    if n > 1 and sampling.temperature == 0:
        raise BadInput(
            f"{n} samples at sampling.temperature=0 are {n} copies of one; set sampling.temperature, or take one"
        )
    return n
