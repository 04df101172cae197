"""What a run says while it works: metrics.jsonl, TensorBoard, W&B by choice, and one line (or a bar) of progress."""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from s1jax.config import BadInput, Positive
from s1jax.records import JsonlWriter, read_jsonl, write_jsonl

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Logging.

    Attributes:
      every: steps between two lines of progress where there is no terminal.
      tensorboard: write `tensorboard/`.
      wandb: project to log to, if the package is installed; empty for none.
    """

    every: Positive = 10
    tensorboard: bool = True
    wandb: str = ""


class Sink(Protocol):
    """Takes the record of each step, in order."""

    def write(self, record: Record) -> None: ...
    def close(self) -> None: ...


def rewind(path: pathlib.Path, step: int) -> None:
    """Drop the lines of a JSONL file that are of later steps than `step`, and one that a crash cut off."""
    JsonlWriter(path).close()
    rows = read_jsonl(path, allow_empty=True)
    if any(row["step"] > step for row in rows):
        write_jsonl(path, [row for row in rows if row["step"] <= step])


class MetricsFile:
    """metrics.jsonl: one object a step. When a run goes on from a step, later lines go, to be written again."""

    def __init__(self, path: pathlib.Path, step: int) -> None:
        rewind(path, step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        """Append a line. It outlives this process at once, and a power cut from the next `sync` on."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Until all lines are on disk; called before a checkpoint that they belong to is complete."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        self._file.close()


class TensorBoard:
    """Scalars as TensorBoard events."""

    def __init__(self, folder: pathlib.Path, step: int) -> None:
        import tensorboardX

        self._writer = tensorboardX.SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, record: Record) -> None:
        """Every number of the record but its step."""
        for name, value in record.items():
            if name != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class WeightsAndBiases:
    """A W&B run."""

    def __init__(self, project: str, out: pathlib.Path) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        id = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]  # a run that goes on is the same run there
        self._run = wandb.init(project=project, dir=str(out), name=out.name, id=id, resume="allow")

    def write(self, record: Record) -> None:
        """The record at its step."""
        self._run.log(dict(record), step=record["step"])

    def close(self) -> None:
        """End the run."""
        self._run.finish()


class Display:
    """A bar on a terminal, else a line every few steps."""

    def __init__(self, steps: int, start: int, every: int) -> None:
        self._steps, self._every = steps, every
        self._bar = _bar() if sys.stderr.isatty() else None
        if self._bar is not None:
            self._task = self._bar.add_task("train", total=steps, completed=start)
            self._bar.start()

    def write(self, record: Record) -> None:
        """Show the record of a step."""
        text = line(record, self._steps)
        if self._bar is not None:
            self._bar.update(self._task, completed=record["step"], description=text)
        elif record["step"] % self._every == 0 or record["step"] == self._steps:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.stop()


def _bar() -> Any:
    import rich.console
    import rich.progress

    columns = (rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn())
    return rich.progress.Progress(*columns, console=rich.console.Console(stderr=True), auto_refresh=True)


def line(record: Record, steps: int) -> str:
    """`step 12/315  loss 1.2345  8,123 tokens/s  MFU 43.1%  3:20 left`."""
    parts = [f"step {record['step']}/{steps}", f"loss {record['loss']:.4f}"]
    if record.get("tokens_per_second") is not None:
        parts.append(f"{record['tokens_per_second']:,.0f} tokens/s")
    if record.get("mfu") is not None:
        parts.append(f"MFU {record['mfu']:.1%}")
    if record.get("seconds_left") is not None:
        minutes, seconds = divmod(round(record["seconds_left"]), 60)
        parts.append(f"{minutes}:{seconds:02d} left")
    return "  ".join(parts)


class Callback:
    """Hands each record to a function, in place of the display."""

    def __init__(self, function: Callable[[Record], None]) -> None:
        self._function = function

    def write(self, record: Record) -> None:
        """Call it."""
        self._function(record)

    def close(self) -> None:
        """Nothing is held."""


class Log:
    """All sinks of a run. Only the first host writes."""

    def __init__(self, metrics: MetricsFile | None, sinks: list[Sink], display: Sink | None) -> None:
        self._metrics, self._sinks, self._display = metrics, sinks, display

    def write(self, record: Record, *, seconds_left: float | None) -> None:
        """The record of a step; the files do not get `seconds_left`."""
        for sink in (self._metrics, *self._sinks):
            if sink is not None:
                sink.write(record)
        if self._display is not None:
            self._display.write({**record, "seconds_left": seconds_left})

    def sync(self) -> None:
        """Metrics are on disk when it returns."""
        if self._metrics is not None:
            self._metrics.sync()

    def close(self) -> None:
        """Close all, also when one fails."""
        with contextlib.ExitStack() as stack:
            for sink in (self._display, *self._sinks, self._metrics):
                if sink is not None:
                    stack.callback(sink.close)


def check(config: LogConfig) -> None:
    """Raises BadInput when a package that the config asks for is not installed, or `every` is not positive."""
    if config.wandb and importlib.util.find_spec("wandb") is None:
        raise BadInput(f"log.wandb={config.wandb!r}, but wandb is not installed; install s1jax[wandb]")
    if config.every < 1:
        raise BadInput(f"log.every={config.every}; it must be at least 1")


def open_log(
    config: LogConfig,
    out: pathlib.Path,
    *,
    step: int,
    steps: int,
    progress: Callable[[Record], None] | None,
    quiet: bool,
) -> Log:
    """The sinks of a run that stands at `step`. `quiet`: not the first host, write nothing."""
    if quiet:
        return Log(None, [], None)
    sinks: list[Sink] = []
    if config.tensorboard:
        sinks.append(TensorBoard(out / "tensorboard", step))
    if config.wandb:
        sinks.append(WeightsAndBiases(config.wandb, out))
    rewind(out / "validation.jsonl", step)
    display = Display(steps, step, config.every) if progress is None else Callback(progress)
    return Log(MetricsFile(out / "metrics.jsonl", step), sinks, display)
