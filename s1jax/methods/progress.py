"""How far a run is: a bar on a terminal, a line every tenth of the way elsewhere. Both on stderr."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressBar:
    """Rows done of all, and tokens a second since the start.

    Args:
      total: rows in all.
      done: of them, done by a former start.
      name: of what is being done.
    """

    def __init__(self, total: int, done: int, name: str) -> None:
        console = Console(stderr=True)
        columns = (
            TextColumn(name),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console) if console.is_terminal else None
        self._task = None if self._bar is None else self._bar.add_task(name, total=total, completed=done, rate="")
        self._name, self._total, self._start = name, total, time.monotonic()
        self._counts = {"rows": done, "tokens": 0}

    def __enter__(self) -> "ProgressBar":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, tokens: int) -> None:
        """One row more, of so many tokens."""
        before = self._counts["rows"]
        self._counts["rows"] += 1
        self._counts["tokens"] += tokens
        rate = f"{self._counts['tokens'] / max(time.monotonic() - self._start, 1e-9):,.0f} tokens/s"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=1, rate=rate)
        elif 10 * self._counts["rows"] // self._total > 10 * before // self._total:
            print(f"{self._name}: {self._counts['rows']} of {self._total} rows, {rate}", file=sys.stderr, flush=True)
