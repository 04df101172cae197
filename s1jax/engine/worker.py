"""One thread that works, and calls of other threads that it serves between two rounds of its work.

JAX programs of one engine must come from one thread at a time. Whoever has the *turn* works: the thread that `start`
began, or the caller of `run`, or, while nobody else works, whoever asks for something. All others put their calls into
a queue and get the results back.
"""

import collections
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Worker:
    """Rounds of work in one thread at a time. Subclasses define `advance`.

    Threading contract: every public method may be called from any thread, also from inside a round (by a listener).
    """

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._owner: int | None = None  # ident of the thread that has the turn
        self._calls: collections.deque[tuple[Future, Callable[[], Any]]] = collections.deque()
        self._thread: threading.Thread | None = None
        self._is_stopping = self._is_retiring = False
        self._failure: BaseException | None = None

    def advance(self) -> bool:
        """One round of work, in the thread that has the turn. False: there was nothing to do."""
        raise RuntimeError(f"{type(self).__name__} does not define advance")

    def fail(self, error: BaseException) -> None:
        """Called in the worker's thread when a round has failed for good; what still waits must be told."""

    @property
    def has_turn(self) -> bool:
        """This thread is the one that works."""
        return self._owner == threading.get_ident()

    @property
    def failure(self) -> BaseException | None:
        """What ended the worker for good."""
        return self._failure

    @property
    def is_in_own_thread(self) -> bool:
        """This is the thread that `start` began."""
        return self._thread is threading.current_thread()

    def post(self, function: Callable[[], T]) -> "Future[T]":
        """Have `function` called by the thread that works; returns at once."""
        future: Future[T] = Future()
        with self._turn:
            if self._failure is not None:
                raise RuntimeError(f"the engine has stopped: {self._failure}") from self._failure
            self._calls.append((future, function))
            self._turn.notify_all()
        return future

    def call(self, function: Callable[[], T]) -> T:
        """`function()` in the thread that works, or in this one while none does; its result."""
        if self.has_turn:
            return function()
        future = self.post(function)
        while not future.done():
            with self._turn:
                self._turn.wait_for(lambda: future.done() or self._owner is None)
                if future.done():
                    break
                self._owner = threading.get_ident()
            try:
                self._serve()
            finally:
                self._leave()
        return future.result()

    def work(self, begin: Callable[[], None] = lambda: None) -> None:
        """Call `begin`, then work in this thread until there is nothing to do.

        Raises:
          RuntimeError: the worker runs in a thread of its own, or this call comes from inside a round.
        """
        with self._turn:
            if self._thread is not None or self._owner == threading.get_ident():
                raise RuntimeError("the engine runs already; wait for what its listeners are told")
            self._turn.wait_for(lambda: self._owner is None)
            self._owner = threading.get_ident()
        try:
            begin()
            while True:
                self._serve()
                if not (self.advance() or self._calls):
                    break
        finally:
            self._leave()

    def start(self) -> None:
        """Work in a thread of its own from now on; without effect if it does already."""
        with self._turn:
            if self._thread is not None:
                return
            self._is_stopping = False
            self._thread = threading.Thread(target=self._run_thread, name=type(self).__name__, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End that thread after its round; what is unfinished stays and goes on at the next `start` or `run`."""
        with self._turn:
            thread, self._is_stopping = self._thread, True
            self._turn.notify_all()
        if thread is not None and thread.ident != threading.get_ident():
            thread.join()

    def retire(self) -> None:
        """End the thread as soon as there is nothing to do."""
        with self._turn:
            self._is_retiring = True
            self._turn.notify_all()

    def serve(self) -> None:
        """Make the calls of others that have come in; for a listener that has to wait for somebody who may call."""
        if self.has_turn:
            self._serve()

    def _run_thread(self) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self._owner is None)
            self._owner = threading.get_ident()
        try:
            while not self._is_stopping:
                self._serve()
                if not self.advance():
                    with self._turn:
                        if self._is_retiring and not self._calls:
                            break
                        self._turn.wait_for(lambda: self._calls or self._is_stopping or self._is_retiring)
        except BaseException as error:  # whoever waits must hear of it, whatever it was
            logging.getLogger(__name__).exception("the engine has stopped")
            with self._turn:
                self._failure = error
            self.fail(error)
        finally:
            self._serve()
            with self._turn:
                self._thread = None
            self._leave()

    def _serve(self) -> None:
        """Make the calls that have come in, in their order."""
        while True:
            with self._turn:
                if not self._calls:
                    return
                future, function = self._calls.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    if self._failure is not None:
                        raise RuntimeError(f"the engine has stopped: {self._failure}") from self._failure
                    future.set_result(function())
                except Exception as error:
                    future.set_exception(error)
            with self._turn:
                self._turn.notify_all()

    def _leave(self) -> None:
        with self._turn:
            self._owner = None
            self._turn.notify_all()
