"""SIGTERM and Ctrl-C ask a run to stop after its step; a second Ctrl-C does not wait."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

TERMINATED = 75  # not 0, which would tell a scheduler that the job is finished


class Stop:
    """Whether a signal has come, and how the process should end because of it."""

    def __init__(self) -> None:
        self._signals: list[int] = []
        self._is_told = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if number == signal.SIGINT and signal.SIGINT in self._signals:
            raise KeyboardInterrupt
        self._signals.append(number)

    def ask(self) -> None:
        """Stop as on SIGTERM. Of several hosts one may call it, and all stop after the same step."""
        if not self._is_told:
            self._is_told = True
            os.kill(os.getpid(), signal.SIGTERM)

    def is_asked(self, step: int) -> bool:
        """Whether to stop after `step`. On several hosts all answer alike (the preemption service decides the step)."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return bool(self._signals)

    def leave(self) -> None:
        """End as the signal asks. Raises KeyboardInterrupt for Ctrl-C, else SystemExit(75)."""
        if signal.SIGINT in self._signals:
            raise KeyboardInterrupt
        raise SystemExit(TERMINATED)


@contextlib.contextmanager
def listening() -> Iterator[Stop]:
    """Handle the two signals within this context (nothing is changed outside the main thread)."""
    stop = Stop()
    # On several hosts JAX's own handler of SIGTERM feeds the preemption service, and Ctrl-C ends at once.
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
