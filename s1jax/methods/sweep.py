"""A whole curve of limits for little more than its last point.

Draws depend on the row's key and the position alone, so what a row thinks under budget N is a prefix of what it thinks
under 2N. One row runs under the largest limit and pauses at each smaller one; there a copy of it goes its own way.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from s1jax.engine.protocol import Sweep
from s1jax.engine.requests import Listener, Request
from s1jax.records import Completion

OnBranchDone = Callable[[Request, Completion], None]


def submit(
    engine: Any,
    sweep: Sweep | None,
    request: Request,
    forks: Sequence[Request],
    on_done: OnBranchDone,
    progress: Callable[[int, list[int], list[bool], int], None] | None = None,
) -> int:
    """Queue one row for its own limit, the largest, and for the smaller ones of `forks`.

    Args:
      engine: an `Engine`.
      sweep: of the row's control; None where there are no forks.
      forks: the same row under smaller limits, by ascending limit.
      on_done: gets the completion of `request` and of each fork, in the thread in which the engine works.
      progress: of the row, see `Listener`.

    Returns: the row's ticket.

    Raises:
      BadInput: limits that the control does not take.
    """
    waiting = list(forks)

    def branched(fork: Request) -> Listener:
        return Listener(done=lambda _, completion: on_done(fork, completion))

    def paused(ticket: int) -> None:
        try:
            engine.fork(ticket, waiting[:1], branched(waiting[0]))
            waiting.pop(0)
            engine.resume(ticket)
        except Exception:
            engine.cancel(ticket)  # all who wait hear of that
            raise

    def done(_: int, completion: Completion) -> None:
        for each in [*waiting, request]:  # a row that ended before a limit is also what it would be under that limit
            on_done(each, completion)

    if not forks or sweep is None:
        return engine.submit(request, Listener(done, None, progress))
    settings = sweep.pause_at(request.control, [sweep.limit(fork.control) for fork in forks])
    return engine.submit(dataclasses.replace(request, control=settings), Listener(done, paused, progress))
