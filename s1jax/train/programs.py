"""The programs of a run, one for each shape of a batch, all compiled before the first step."""

import concurrent.futures
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from s1jax.train.plan import HostBatch, Plan
from s1jax.train.step import Batch, TrainState

BatchShape = tuple[tuple[int, ...], tuple[int, ...] | None]
"""Of the tokens of a batch `[A, B, T]`, and of its `kept`."""


class Programs:
    """A compiled function of a state and a batch for each shape of a batch."""

    def __init__(self, compiled: Mapping[BatchShape, Callable[[TrainState, Batch], Any]]) -> None:
        self._compiled = compiled

    def __call__(self, state: TrainState, batch: Batch) -> Any:
        return self._compiled[shape_of(batch)](state, batch)


def shape_of(batch: Batch) -> BatchShape:
    """By which programs are told apart."""
    return batch.tokens.shape, None if batch.kept is None else batch.kept.shape


def shapes_of_steps(plan: Plan, rows_at_once: int) -> list[BatchShape]:
    """BatchShapes of the batches of a run."""
    pairs = zip(plan.lengths, plan.kept, strict=True)
    return [_shape(plan.rows, rows_at_once, length, kept) for length, kept in pairs]


def shapes_of_batches(batches: Sequence[HostBatch], rows_at_once: int) -> list[BatchShape]:
    """BatchShapes of given batches, each once."""
    arrays = [batch.arrays for batch in batches]
    sizes = [(x.tokens.shape, None if x.kept is None else x.kept.shape[1]) for x in arrays]
    return list(dict.fromkeys(_shape(rows, rows_at_once, length, kept) for (rows, length), kept in sizes))


def compile_all(
    asked: Sequence[tuple[Any, Sequence[BatchShape]]],
    state: TrainState,
    sharding: NamedSharding,
    say: Callable[[str], None],
) -> list[Programs]:
    """Compile jitted functions of a state and a batch for all their shapes, side by side.

    A thread for each: hosts that wait for each other while they tune a program cannot wait in different orders.

    Args:
      asked: functions and the shapes of their batches.
      state: or its shapes, with shardings.
      sharding: of a batch.
    """
    if not any(shapes for _, shapes in asked):
        return [Programs({}) for _ in asked]
    jobs = [(function, _abstract(shape, sharding)) for function, shapes in asked for shape in shapes]
    steps = ", ".join(f"{tokens[0] * tokens[1]} x {tokens[2]:,}" for tokens, _ in asked[0][1])
    say(f"compiling {len(jobs)} programs side by side, a step for {steps} tokens (usually 90 s for a large model) ...")
    begun = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
        done = iter(list(pool.map(lambda job: job[0].lower(state, job[1]).compile(), jobs)))
    say(f"compiled in {time.perf_counter() - begun:.0f} s")
    return [Programs({shape: next(done) for shape in shapes}) for _, shapes in asked]


def _shape(rows: int, rows_at_once: int, length: int, kept: int | None) -> BatchShape:
    dealt = (rows // rows_at_once, rows_at_once)
    return (*dealt, length), None if kept is None else (*dealt, kept)


def _abstract(shape: BatchShape, sharding: NamedSharding) -> Batch:
    tokens, kept = shape

    def array(shape: tuple[int, ...], dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    ints = {name: array(tokens) for name in ("tokens", "targets", "positions", "segments")}
    return Batch(**ints, weights=array(tokens, jnp.float32), kept=None if kept is None else array(kept))
