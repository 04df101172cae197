"""A whole budget curve for little more than its last point.

Draws depend on the row's key and the position alone, so what a row thinks under budget N is a prefix of what it thinks
under 2N. One row runs under the largest budget and pauses at each smaller one; there a copy is closed and answers.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from s1jax.config import BadInput
from s1jax.engine.protocol import ControlRow
from s1jax.engine.requests import Request
from s1jax.records import Completion

MAX_SMALLER = 8  # thresholds that a row can pause at


class Sweep:
    """Rows that run under several thinking budgets at once.

    `done` and `pause` go into `Engine.advance`, or `run` does it all.
    """

    def __init__(self, engine: Any, on_done: Callable[[Request, int, Completion], None]) -> None:
        """`engine`: an `Engine`. `on_done` gets each completion with the request it was submitted as and its budget."""
        self._engine, self._on_done = engine, on_done
        self._trunks: dict[int, tuple[Request, list[int]]] = {}
        self._branches: dict[int, tuple[Request, int]] = {}

    def submit(self, request: Request, budgets: Sequence[int]) -> None:
        """Queue one row for its own budget, the largest, and for smaller ones.

        Raises:
          BadInput: a budget that is not smaller, or below the row's minimum; more than 8 of them; a row without one.
        """
        row, budgets = request.control, sorted(set(budgets))
        largest = row.budget if row.is_thinking else 0
        wrong = [budget for budget in budgets if not row.minimum <= budget < largest]
        if wrong or len(budgets) > MAX_SMALLER:
            raise BadInput(
                f"request {request.id!r}: budgets {budgets} below {largest}; give at most {MAX_SMALLER}, each from "
                f"min_thinking_tokens={row.minimum} to {largest - 1}"
            )
        trunk = dataclasses.replace(request, control=dataclasses.replace(row, pause_at=tuple(budgets)))
        self._trunks[self._engine.submit(trunk)] = request, budgets

    def pause(self, ticket: int) -> None:
        """Close a copy of the row at the threshold that it has reached, and let the row go on."""
        request, budgets = self._trunks[ticket]
        budget = budgets.pop(0)
        [branch] = self._engine.fork(ticket, [dataclasses.replace(request, control=_under(request.control, budget))])
        self._branches[branch] = request, budget
        self._engine.resume(ticket)

    def done(self, ticket: int, completion: Completion) -> None:
        """Hand a completion on. A row that ended before a threshold is also what it would be under that budget."""
        if ticket in self._branches:
            self._on_done(*self._branches.pop(ticket), completion)
            return
        request, budgets = self._trunks.pop(ticket)
        for budget in [*budgets, request.control.budget]:
            self._on_done(request, budget, completion)

    def run(self) -> None:
        """Work until all rows have ended under all budgets."""
        while self._engine.advance(self.done, self.pause):
            pass


def _under(row: ControlRow, budget: int) -> ControlRow:
    return dataclasses.replace(row, budget=budget, has_budget=True, pause_at=())
