"""The decode engine: requests in, `Completion`s out, any number of them through a fixed number of slots.

    engine = Engine(model, tokenizer, EngineConfig(slots=8, max_length=4096), build(tokenizer, model.config.V, configs))
    row = admit(control_config, tokenizer, prompt_length=len(ids), max_length=engine.max_length, max_new_tokens=1000)
    engine.submit(Request(id="q1", sample=0, seed=0, prompt_ids=ids, control=row, sampling=SamplingConfig()))
    completions = engine.run(on_done=lambda completion: ...)       # also returned, in the order of submission

One engine is one copy of the model; its programs are compiled once for any lengths. **Promise**: within one engine a
request's ids and log-probabilities are the same alone, in company, in any slot of its class, in any order and under any
window: its class, its prefill bucket and the length at which it moves up depend on the row alone.
Across engines (other slots, mesh or types) ids are equal except at near ties.

Rows can be paused (by their control), resumed, forked, snapshot, restored and extended; see the methods.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np

from s1jax.config import BadInput
from s1jax.engine import cache as kv
from s1jax.engine import requests
from s1jax.engine.config import EngineConfig, resolve_classes
from s1jax.engine.memory import plan
from s1jax.engine.protocol import DONE, PAUSE, RUN, Control
from s1jax.engine.requests import Request, Seat
from s1jax.engine.seating import Seating, Snapshot, Stats
from s1jax.engine.slots import Buckets, SlotTable
from s1jax.engine.state import Place, Report, Shape
from s1jax.engine.weights import prepare
from s1jax.models.decoder import Decoder, Unstacked
from s1jax.records import Completion
from s1jax.text.tokens import Tokenizer

OnDone = Callable[[int, Completion], None]
OnPause = Callable[[int], None]
OnProgress = Callable[[Request, list[int], list[bool]], None]


@dataclasses.dataclass(frozen=True)
class _Window:
    """One that was dispatched: its number, whether somebody waited for a slot, and what it will report."""

    number: int
    is_queued: bool
    report: Report


class Engine:
    """Slots, a queue, and the loop that keeps the slots filled.

    Attributes:
      max_length: most ids of prompt and completion.
      memory: where its device memory goes.
      stats: what it has done so far.
    """

    def __init__(
        self,
        model: Decoder | Unstacked,
        tokenizer: Tokenizer,
        config: EngineConfig,
        control: Control,
        *,
        dtype: Literal["float32", "bfloat16"] = "float32",
        mesh: jax.sharding.Mesh | None = None,
        notify: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Lay the weights out for decoding.

        Args:
          control: `CONTROLS[kind](tokenizer, vocab_size, configs)`; the rows' controls must be among `configs`.
          dtype: compute type.
          mesh: of `tensor` devices only; None: one device.
          notify: gets one line before the first compilation, and one that says what is in memory.

        Raises:
          BadInput: a configuration that cannot be.
        """
        resolve_classes(config, model.config, 1)  # refuses before the weights are touched
        if mesh is not None and mesh.size != mesh.shape["tensor"]:
            raise BadInput(
                f"an engine lies on `tensor` devices alone, the mesh is {dict(mesh.shape)}; set the others to 1"
            )
        prepared = prepare(model, config.weights or dtype, mesh)
        size = kv.Size(model.config.L, model.config.K, model.config.H, config.cache or dtype)
        self.memory = plan(config, prepared, size, prefill_ids=config.prefill_ids)
        notify(str(self.memory))
        shape = Shape(self.memory.classes, config.window, dtype)
        # Rows that no slot waits for would be computed for nothing.
        buckets = Buckets(config.prefill_smallest, min(config.prefill_rows, shape.rows), config.prefill_ids)
        self.max_length, self.stats = shape.max_length, Stats()
        self._tokenizer, self._control, self._ahead = tokenizer, control, config.ahead
        self._slots = SlotTable(prepared, control, shape, size=size, buckets=buckets, mesh=mesh, notify=notify)
        self._seating = Seating(self._slots, control, self.stats)
        self._next_ticket, self._number = 0, 0
        self._to_halt: list[Place] = []
        self._outstanding: _Window | None = None

    @property
    def programs(self) -> frozenset[tuple]:
        """Names of the programs compiled so far; bounded by classes and buckets, whatever is asked."""
        return frozenset(self._slots.programs)

    def submit(self, request: Request) -> int:
        """Queue a request; the ticket returned names its row from now on. Raises BadInput for one that cannot run."""
        requests.check(request, self._tokenizer, self.max_length)
        self._control.rows([request.control])  # refuses what the control was not built for, before any work
        ticket = self._take_ticket()
        self._seating.add(ticket, request)
        return ticket

    def run(
        self,
        on_done: Callable[[Completion], None] | None = None,
        *,
        on_pause: OnPause | None = None,
        on_progress: OnProgress | None = None,
    ) -> list[Completion]:
        """Work until nothing can run any more: all rows have ended, or those left are paused.

        Args:
          on_done: gets each completion as its row ends.
          on_pause: gets the ticket of each row that pauses; it may fork, snapshot, extend, resume or drop it.
          on_progress: after each window, for each row: its request, ids after the prompt, and which were forced. The
            last ids can be taken back later.

        Returns: all completions of this call, in the order of their tickets.
        """
        found: dict[int, Completion] = {}

        def done(ticket: int, completion: Completion) -> None:
            found[ticket] = completion
            if on_done is not None:
                on_done(completion)

        while self.advance(done, on_pause, on_progress):
            pass
        return [found[ticket] for ticket in sorted(found)]

    def advance(self, on_done: OnDone, on_pause: OnPause | None = None, on_progress: OnProgress | None = None) -> bool:
        """One round: fill free slots, dispatch a window, read the report of the one before. False: nothing to do.

        Raises:
          BadInput: the device is out of memory.
        """
        try:
            return self._advance(on_done, on_pause, on_progress)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise BadInput(
                f"out of device memory with {self.memory}; lower engine.slots or engine.max_length, or set "
                "engine.cache or engine.weights to int8"
            ) from error

    def _advance(self, on_done: OnDone, on_pause: OnPause | None, on_progress: OnProgress | None) -> bool:
        self._seating.refill(self._number + 1)
        previous, self._outstanding = self._outstanding, None
        if any(seat.status == RUN and not self._seating.is_full(seat) for seat in self._seating.seats.values()):
            self._outstanding = self._dispatch()
            if not self._ahead:
                previous, self._outstanding = self._outstanding, None
        if previous is not None:
            self._collect(previous, on_done, on_pause, on_progress)
        return previous is not None or self._outstanding is not None

    def ids(self, ticket: int) -> list[int]:
        """Ids of a row so far, prompt included."""
        return list(self._seating.ids(ticket))

    def resume(self, ticket: int) -> None:
        """Let a paused row run. Raises ValueError for a row that is not paused, as all that follow."""
        self._seating.resume(ticket, since=self._number + 1)

    def drop(self, ticket: int) -> None:
        """End a paused row without a completion."""
        self._seating.drop(ticket)

    def snapshot(self, ticket: int) -> Snapshot:
        """A copy of a paused row: its ids, cached positions and control state."""
        return self._seating.snapshot(ticket)

    def restore(self, snapshot: Snapshot, request: Request | None = None) -> int:
        """Let a copy run from where it was taken; the ticket of the new row.

        Args:
          request: with the row's prompt, and another seed, sampling or limits; or with all of the row's ids as its
            prompt and a fresh control (a probe). None: as it was.

        Raises:
          ValueError: the request has another prompt. BadInput: it cannot run.
        """
        if request is not None:
            requests.check(request, self._tokenizer, self.max_length)
        ticket = self._take_ticket()
        self._seating.restore(ticket, snapshot, request, since=self._number + 1)
        return ticket

    def fork(self, ticket: int, forks: Sequence[Request]) -> list[int]:
        """Tickets of copies of a paused row, each under its own request (see `restore`); the row stays paused."""
        snapshot = self.snapshot(ticket)
        return [self.restore(snapshot, request) for request in forks]

    def extend(self, ticket: int, ids: Sequence[int]) -> None:
        """Append ids, marked as forced, to a paused row by one forward pass; the control does not see them."""
        self._seating.extend(ticket, ids, since=self._number + 1)

    def score(self, row: int | Sequence[int]) -> np.ndarray:
        """Log-softmax of the raw logits at each id of a row (its ticket) or of given ids: float32, 0 at the first."""
        return self._slots.score(self.ids(row) if isinstance(row, int) else row)

    def _take_ticket(self) -> int:
        self._next_ticket += 1
        return self._next_ticket - 1

    def _dispatch(self) -> _Window:
        halted = [place for place in self._to_halt if self._slots.is_free(place)]
        self._to_halt = []
        if halted:
            self._slots.set_status(halted, DONE)
        self._number += 1
        is_queued, n_steps = self._seating.is_queued, self._slots.shape.rows * self._slots.shape.window
        self.stats.windows += 1
        self.stats.slot_steps += n_steps
        self.stats.queued_slot_steps += n_steps * is_queued
        return _Window(self._number, is_queued, self._slots.window())

    def _collect(
        self, window: _Window, on_done: OnDone, on_pause: OnPause | None, on_progress: OnProgress | None
    ) -> None:
        report = jax.device_get(dataclasses.replace(window.report, control=None))
        self.stats.row_steps += int(report.n_steps)
        self.stats.queued_row_steps += int(report.n_steps) * window.is_queued
        ended, paused = [], []
        for seat in self._seating.seats.values():
            if seat.since > window.number:
                continue  # the report speaks of whoever sat there before
            i = self._slots.index(seat.place)
            seat.update(
                report.low_B[i], report.length_B[i], report.tokens_BT[i], report.forced_BT[i], report.logprob_BT[i]
            )
            was, seat.status = seat.status, int(report.status_B[i])
            if seat.status == DONE or (seat.request.sampling.stop and seat.status == RUN):
                ended.append(seat)
            elif seat.status == PAUSE and was != PAUSE:
                paused.append(seat)
            if on_progress is not None:
                on_progress(seat.request, seat.token_ids, seat.forced[len(seat.request.prompt_ids) :])
        states = jax.device_get(window.report.control) if ended else None
        for seat in ended:
            i = self._slots.index(seat.place)
            state_row = jax.tree.map(lambda x, i=i: x[i], states)
            if seat.status == DONE or self._is_stopped(seat, state_row):
                self._end(seat, state_row, on_done)
        for seat in paused:
            if on_pause is not None:
                on_pause(seat.ticket)

    def _is_stopped(self, seat: Seat, state_row: Any) -> bool:
        account = self._control.account(state_row, seat.token_ids, seat.forced[len(seat.request.prompt_ids) :])
        return requests.stop_of(seat, self._tokenizer, account.answer_offset) is not None

    def _end(self, seat: Seat, state_row: Any, on_done: OnDone) -> None:
        if seat.request.sampling.logprobs and requests.has_unknown(seat.logprobs):
            known = self._slots.score(seat.ids)
            seat.logprobs = [float(b) if np.isnan(a) else a for a, b in zip(seat.logprobs, known, strict=True)]
        completion = requests.complete(seat, self._control, state_row, self._tokenizer)
        self._free(seat)
        on_done(seat.ticket, completion)

    def _free(self, seat: Seat) -> None:
        if seat.status == RUN:
            self._to_halt.append(seat.place)
        self._seating.rise(seat.ticket)
