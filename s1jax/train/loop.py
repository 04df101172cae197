"""The loop over steps: dispatch, report one step behind, validate, save, stop."""

import collections
import contextlib
import dataclasses
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding

from s1jax.checkpoint.store import Store
from s1jax.models.decoder import DecoderConfig
from s1jax.models.lora import LoraConfig
from s1jax.records import JsonlWriter
from s1jax.runs import mirror
from s1jax.runs.places import DiskFull
from s1jax.train.flops import train_flops
from s1jax.train.log import Log
from s1jax.train.plan import HostBatch, Plan, prefetched
from s1jax.train.step import Batch, Metrics, TrainState, own_rows, place_batch
from s1jax.train.stop import Stop


@dataclasses.dataclass(frozen=True)
class Pace:
    """When the loop does what else it does; counts of steps, None for never.

    Attributes:
      save, validate: every so many steps; both are done at the end, and validation before each save.
      profile: first step to trace and how many.
      final_moments: the last save holds the optimizer's state.
    """

    save: int | None
    validate: int | None
    profile: tuple[int, int] | None
    final_moments: bool = True


@dataclasses.dataclass(frozen=True)
class Loop:
    """What a run's loop works with.

    Attributes:
      model, lora: sizes of the model and of its adapters, if it has any.
      plan: the batches.
      step, evaluate: functions that are compiled for the shapes of all batches (`programs.compile_all`).
      rows_at_once: rows of a micro-batch.
      sharding: of a batch.
      validation: batches of held-out rows, may be empty.
      store, log, stop, pace: where checkpoints and records go, who may end the run, and when.
      out: the run's folder.
      peak: operations per second of all devices, or None.
      say: prints a line.
    """

    model: DecoderConfig
    lora: LoraConfig | None
    plan: Plan
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    evaluate: Callable[[TrainState, Batch], jax.Array]
    rows_at_once: int
    sharding: NamedSharding
    validation: Sequence[HostBatch]
    store: Store
    log: Log
    stop: Stop
    pace: Pace
    out: pathlib.Path
    peak: float | None
    say: Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Dispatched:
    """A step on its way: its number from 1, its batch, the seconds waited for it, and metrics still on the devices."""

    step: int
    batch: HostBatch
    waited: float
    metrics: Metrics


class Clock:
    """Seconds of the last steps."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._seconds: collections.deque[float] = collections.deque(maxlen=50)

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self._seconds.append(seconds)
        return seconds

    def skip(self) -> None:
        """What was done since the last lap was no training step."""
        self._last = time.perf_counter()

    def left(self, steps: int) -> float:
        """Seconds that `steps` more will take, by the median of the last ones."""
        return steps * statistics.median(self._seconds)


class Profile:
    """A trace of some steps, whatever part of them this start of the run makes: it ends with them or with the run."""

    def __init__(self, steps: tuple[int, int] | None, folder: pathlib.Path) -> None:
        """`steps`: the first one to trace and how many; None for none."""
        first, count = steps or (0, 0)
        self._steps = range(first, first + count)
        self._folder = folder
        self._is_on = False

    def before(self, step: int) -> None:
        """Begin with the first step of the window that is made."""
        if step in self._steps and not self._is_on:
            jax.profiler.start_trace(str(self._folder))
            self._is_on = True

    def after(self, step: int) -> None:
        """End with the last step of the window."""
        if step + 1 not in self._steps:
            self.close()

    def close(self) -> None:
        """End where the run ends within the window."""
        if self._is_on:
            self._is_on = False
            jax.profiler.stop_trace()


def train(loop: Loop, state: TrainState, start: int) -> TrainState:
    """Run steps `start` to the end and return the last state, saved.

    Raises:
      FloatingPointError: loss or gradient is not finite; the step, the rows and the last checkpoint are named.
      DiskFull: a checkpoint could not be written; those before it are intact.
      KeyboardInterrupt, SystemExit: a signal came; everything is saved.
    """
    clock = Clock()
    before: Dispatched | None = None
    own = own_rows(loop.plan.rows, loop.plan.rows // loop.rows_at_once, loop.sharding)
    batches = prefetched(loop.plan, start, own)
    with contextlib.closing(Profile(loop.pace.profile, loop.out / "profile")) as profile:
        for number in range(start + 1, loop.plan.steps + 1):
            profile.before(number)
            state, now = _dispatch(loop, state, number, batches)
            if before is not None:
                _report(loop, before, clock)
            before = now
            is_last = number == loop.plan.steps
            if not loop.store.check():
                loop.stop.ask()
            is_asked = loop.stop.is_asked(number)
            if is_last or is_asked or _is_due(number, loop.pace.save) or _is_due(number, loop.pace.validate):
                _report(loop, now, clock)
                before = None
                _validate_and_save(loop, state, number, is_save=is_last or is_asked or _is_due(number, loop.pace.save))
                clock.skip()
            profile.after(number)
            if is_asked and not is_last:
                if not loop.store.wait():
                    raise DiskFull(f"stopped after step {number}, which is not saved; free space and start it again")
                loop.say(f"stopped after step {number}, saved; the same command goes on from there")
                loop.stop.leave()
    loop.store.wait()
    return state


def _dispatch(
    loop: Loop, state: TrainState, number: int, batches: Iterator[HostBatch]
) -> tuple[TrainState, Dispatched]:
    begun = time.perf_counter()
    batch = next(batches)
    waited = time.perf_counter() - begun
    rows = batch.arrays.tokens.shape[0]
    state, metrics = loop.step(state, place_batch(batch.arrays, rows // loop.rows_at_once, loop.sharding))
    return state, Dispatched(number, batch, waited, metrics)


def _report(loop: Loop, done: Dispatched, clock: Clock) -> None:
    """Fetch a step's metrics (this waits for the step) and write them."""
    values = jax.device_get(done.metrics)
    seconds = clock.lap()
    flops = train_flops(loop.model, done.batch.lengths, loop.lora)
    record = {
        "step": done.step,
        "loss": float(values.loss),
        "grad_norm": float(values.grad_norm),
        "learning_rate": float(values.learning_rate),
        "tokens": done.batch.tokens,
        "tokens_per_second": sum(done.batch.lengths) / seconds,
        "mfu": None if loop.peak is None else flops / seconds / loop.peak,
        "data_seconds": done.waited,
    }
    if not (math.isfinite(record["loss"]) and math.isfinite(record["grad_norm"])):
        _fail(loop, record, done.batch.ids)
    loop.log.write(record, seconds_left=clock.left(loop.plan.steps - done.step))


def _fail(loop: Loop, record: dict[str, Any], ids: Sequence[str]) -> None:
    loop.store.wait()
    last = loop.store.newest()
    where = f"the last checkpoint is of step {last.step} ({last.folder})" if last else "there is no checkpoint yet"
    raise FloatingPointError(
        f"step {record['step']}: loss is {record['loss']}, gradient norm {record['grad_norm']}; nothing of it is "
        f"saved, {where}. Rows of the step: {', '.join(ids)}"
    )


def _validate_and_save(loop: Loop, state: TrainState, number: int, *, is_save: bool) -> None:
    loss = validate(loop, state) if loop.validation else None
    if loss is not None and jax.process_index() == 0:
        with JsonlWriter(loop.out / "validation.jsonl") as file:
            file.write({"step": number, "loss": loss})
        loop.say(f"step {number}: validation loss {loss:.4f}")
    if is_save:
        loop.log.sync()
        mirror.flush(loop.out)  # a checkpoint never knows of a step that metrics.jsonl lacks
        is_whole = loop.pace.final_moments or number < loop.plan.steps
        kept = dataclasses.replace(state, base=None)
        loop.store.save(number, kept if is_whole else dataclasses.replace(kept, optimizer=None), loss)


def validate(loop: Loop, state: TrainState) -> float:
    """Loss of the held-out rows, normed as in training over all of them."""
    losses = []
    for batch in loop.validation:
        rows = place_batch(batch.arrays, batch.arrays.tokens.shape[0] // loop.rows_at_once, loop.sharding)
        losses.append(loop.evaluate(state, rows))
    return float(sum(jax.device_get(losses)))


def _is_due(number: int, every: int | None) -> bool:
    return every is not None and number % every == 0
