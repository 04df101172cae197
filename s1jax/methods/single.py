"""Every sample stands for itself; several of a question are averaged."""

from collections.abc import Sequence

from s1jax.config import BadInput
from s1jax.engine.sampling import SamplingConfig
from s1jax.methods.method import Mark, Method, MethodConfig, Outcome, refuse_copies


def samples(method: MethodConfig, sampling: SamplingConfig) -> int:
    """`sampling.n`."""
    if method.n is not None:
        raise BadInput(f"method.n={method.n} says nothing to method.kind=single; set sampling.n or method.kind=vote")
    return refuse_copies(sampling.n, sampling)


def outcome(marks: Sequence[Mark]) -> Outcome:
    """Means over the samples."""
    return Outcome(
        sum(mark.correct for mark in marks) / len(marks),
        sum(mark.thinking_tokens for mark in marks) / len(marks),
        sum(mark.total_tokens for mark in marks) / len(marks),
    )


METHOD = Method("single", samples, outcome, joint=False)
