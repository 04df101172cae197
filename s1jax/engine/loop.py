"""The rounds of an engine, in the one thread that works: fill slots, dispatch a window, read the one before, tell."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from s1jax.config import BadInput
from s1jax.engine import requests
from s1jax.engine.protocol import DONE, PAUSE, RUN, Automaton
from s1jax.engine.requests import HostRow, Listener, SlotIndex
from s1jax.engine.scheduler import Scheduler, Stats
from s1jax.engine.slots import SlotTable
from s1jax.engine.state import Report
from s1jax.records import Completion
from s1jax.text.tokens import Tokenizer


@dataclasses.dataclass(frozen=True)
class Window:
    """A dispatched window, not yet read: its number, whether a row waited for a slot, and what it will report."""

    number: int
    is_queued: bool
    report: Report


class DecodeLoop:
    """Not thread-safe: `s1jax.engine.engine.Engine` sees to it that one thread at a time is here.

    Attributes:
      scheduler: which row has which slot.
      next_window: number of the next window to be dispatched.
    """

    def __init__(
        self,
        slots: SlotTable,
        scheduler: Scheduler,
        automaton: Automaton,
        tokenizer: Tokenizer,
        stats: Stats,
        *,
        ahead: bool,
    ) -> None:
        """`ahead`: dispatch the next window before the last one is read."""
        self.scheduler = scheduler
        self._slots, self._automaton, self._tokenizer = slots, automaton, tokenizer
        self._stats, self._ahead, self._number = stats, ahead, 0
        self._to_halt: list[SlotIndex] = []
        self._unread: list[Window] = []
        self._raised: list[BaseException] = []

    @property
    def next_window(self) -> int:
        """Number of the next window."""
        return self._number + 1

    def advance(self) -> bool:
        """One round. False: nothing to do."""
        scheduler = self.scheduler
        for ticket, entry, error in scheduler.refill(self.next_window):
            self._tell(entry.listener, ticket, requests.unbegun(entry.request, error))
        runs = any(row.status == RUN and not scheduler.is_full(row) for row in scheduler.rows.values())
        if runs:
            self._unread.append(self._dispatch())
        if len(self._unread) > (runs and self._ahead):
            self._collect(self._unread[0])
            self._unread.pop(0)  # not before: an interrupt while it is read must not lose it
            return True
        return runs

    def _dispatch(self) -> Window:
        halted = [place for place in self._to_halt if self._slots.is_free(place)]
        self._to_halt = []
        if halted:
            self._slots.set_status(halted, DONE)
        self._number += 1
        is_queued, n_steps = self.scheduler.is_queued, self._slots.shape.rows * self._slots.shape.window
        self._stats.windows += 1
        self._stats.slot_steps += n_steps
        self._stats.queued_slot_steps += n_steps * is_queued
        return Window(self._number, is_queued, self._slots.window())

    def _collect(self, window: Window) -> None:
        report = jax.device_get(dataclasses.replace(window.report, control=None))
        self._stats.row_steps += int(report.n_steps)
        self._stats.queued_row_steps += int(report.n_steps) * window.is_queued
        seen, paused = [], []
        for row in self.scheduler.rows.values():
            if row.since > window.number:
                continue  # the report speaks of the row that was there before
            i = self._slots.index(row.place)
            row.update(
                report.low_B[i], report.length_B[i], report.tokens_BT[i], report.forced_BT[i], report.logprob_BT[i]
            )
            before, row.status = row.status, int(report.status_B[i])
            if row.status == PAUSE and before != PAUSE:
                paused.append(row)
            seen.append(row)
        needs_state = [row for row in seen if _needs_state(row)]
        states = jax.device_get(window.report.control) if needs_state else None
        for row in needs_state:
            if self.scheduler.rows.get(row.ticket) is row:  # a listener of another row may have ended it
                i = self._slots.index(row.place)
                self._look_at(row, jax.tree.map(lambda x, i=i: x[i], states))
        for row in paused:
            if self.scheduler.rows.get(row.ticket) is row and row.status == PAUSE:
                self.tell_paused(row.listener, row.ticket)

    def _look_at(self, row: HostRow, state_row: Any) -> None:
        """End the row if it is over, stopped or cancelled; else show how far it is."""
        try:
            is_over = row.status == DONE or row.is_cancelled
            if is_over or requests.stop_of(row, self._automaton, state_row) is not None:
                self._end(row, state_row)
            elif row.listener.progress is not None:
                thinking = self._automaton.thinking_tokens(state_row, len(row.token_ids))
                n = len(row.token_ids) if row.finder is None else row.finder.n_safe()
                self._hear(
                    row.listener.progress,
                    row.ticket,
                    row.token_ids[:n],
                    row.forced_after_prompt[:n],
                    min(thinking, n),
                )
        except Exception as error:  # of the control or the tokenizer: this row's, and no other's
            logging.getLogger(__name__).exception("%s ends with an error", row.request.name)
            if self.scheduler.rows.get(row.ticket) is row:
                self._free(row)
                self._tell(row.listener, row.ticket, requests.failed(row, error))

    def _end(self, row: HostRow, state_row: Any) -> None:
        self._fill_logprobs(row)
        completion = requests.complete(row, self._automaton, state_row, self._tokenizer)
        self._free(row)
        self._tell(row.listener, row.ticket, completion)

    def _fill_logprobs(self, row: HostRow) -> None:
        """Score the row where a log-probability could not be known on the way."""
        if row.request.sampling.logprobs and requests.has_unknown(row.logprobs):
            known = self._slots.score(row.ids)
            row.logprobs = [float(b) if np.isnan(a) else a for a, b in zip(row.logprobs, known, strict=True)]

    def _free(self, row: HostRow) -> None:
        if row.status == RUN:
            self._to_halt.append(row.place)
        self.scheduler.release(row.ticket)

    # ---------------------------------------------------------------------------------------- calls between two windows

    def cancel(self, ticket: int) -> None:
        """End a row; a running one with the next window that is read."""
        scheduler, entry = self.scheduler, self.scheduler.waiting(ticket)
        if entry is not None:
            scheduler.release(ticket)
            self._tell(entry.listener, ticket, requests.unbegun(entry.request))
        elif ticket in scheduler.parked:
            parked = scheduler.parked[ticket]
            row, state_row = scheduler.unpark(ticket), parked.snapshot.state_row
            row.is_cancelled = True
            completion = self._guarded(row, state_row)
            scheduler.release(ticket)
            self._tell(parked.listener, ticket, completion)
        elif ticket in scheduler.rows:
            row = scheduler.rows[ticket]
            row.is_cancelled = True
            is_in_flight = any(row.since <= window.number for window in self._unread)
            if row.status == PAUSE or not is_in_flight:
                completion = self._guarded(row, self._slots.control_state(row.place))
                self._free(row)
                self._tell(row.listener, ticket, completion)

    def _guarded(self, row: HostRow, state_row: Any) -> Completion:
        try:
            self._fill_logprobs(row)
            return requests.complete(row, self._automaton, state_row, self._tokenizer)
        except Exception as error:
            return requests.failed(row, error)

    def pause(self, ticket: int) -> None:
        """Let a row wait; its listener hears of it."""
        if self.scheduler.pause(ticket):
            self.tell_paused(self.scheduler.listener(ticket), ticket)

    def fail(self, error: BaseException) -> None:
        """End all rows: the engine cannot go on."""
        for ticket in self.scheduler.tickets:
            listener, request = self.scheduler.listener(ticket), self.scheduler.request(ticket)
            self._tell(listener, ticket, requests.unbegun(request, error))

    # ------------------------------------------------------------------------------------------------- who hears what

    def _tell(self, listener: Listener, ticket: int, completion: Completion) -> None:
        if listener.done is not None:
            self._hear(listener.done, ticket, completion)

    def tell_paused(self, listener: Listener, ticket: int) -> None:
        """A row waits for its caller."""
        if listener.paused is not None:
            self._hear(listener.paused, ticket)

    def _hear(self, function: Callable[..., None], *arguments: Any) -> None:
        """A listener that raises does not keep others from hearing; what it raised comes up after the round."""
        try:
            function(*arguments)
        except BaseException as error:
            self._raised.append(error)

    def take_raised(self) -> list[BaseException]:
        """What listeners have raised since the last call."""
        raised, self._raised = self._raised, []
        return raised


def _needs_state(row: HostRow) -> bool:
    """The control's state is wanted: the row may be over, or somebody watches it."""
    has_stop = row.status == RUN and row.finder is not None and row.finder.has_match
    return row.status == DONE or row.is_cancelled or has_stop or row.listener.progress is not None


def out_of_memory(error: Exception, memory: Any) -> Exception:
    """What to raise for an error of the device: BadInput with the way out where its memory is full."""
    if "RESOURCE_EXHAUSTED" not in str(error):
        return error
    return BadInput(
        f"out of device memory with {memory}; lower engine.slots or engine.max_length, or set engine.cache or "
        "engine.weights to int8"
    )
