"""Which row sits in which slot: the queue, prefill and its sharing, entering, moving up, waiting outside.

A row enters the smallest class that holds its prompt and one id more, and moves up when it is full. Where the class it
needs is full it waits, unchanged; rows of the largest class never need to move, so something always drains.
"""

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from s1jax.engine import cache as kv
from s1jax.engine import requests
from s1jax.engine.protocol import PAUSE, RUN, Control
from s1jax.engine.requests import Request, Seat
from s1jax.engine.state import MAX_KEPT, Place, Row, Shape, Source


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A row outside of its slot: ids, cached positions, control state. The arrays have a leading axis 1.

    Attributes:
      request: what it runs.
      of_class: the length class it needs.
      cache, row: on the device or on the host.
      n_added: ids that were appended from outside, of which its control does not know.
    """

    request: Request
    of_class: int
    cache: tuple[kv.Slots, ...]
    row: Row
    n_added: int = 0


@dataclasses.dataclass
class Stats:
    """Counted since the engine was made.

    Attributes:
      windows, prefills: programs run.
      row_steps: steps that rows ran. slot_steps: steps that slots could have run.
      queued_row_steps, queued_slot_steps: the same in windows that began while somebody waited for a slot.
    """

    windows: int = 0
    prefills: int = 0
    row_steps: int = 0
    slot_steps: int = 0
    queued_row_steps: int = 0
    queued_slot_steps: int = 0


class Lanes(Protocol):
    """What seating needs of the device side; `s1jax.engine.slots.SlotTable` is it."""

    shape: Shape

    def class_of(self, length: int) -> int: ...
    def n_free(self, of_class: int) -> int: ...
    def bucket_of(self, prompt_length: int) -> tuple[int, int]: ...
    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[Source]: ...
    def enter(self, source: Source, row: Row, of_class: int) -> Place: ...
    def read(self, place: Place) -> tuple[tuple[kv.Slots, ...], Row]: ...
    def move(self, place: Place, of_class: int) -> Place: ...
    def leave(self, place: Place) -> None: ...
    def set_status(self, places: Sequence[Place], status: int) -> None: ...
    def extend(
        self, cache: tuple[kv.Slots, ...], start: int, ids: Sequence[int], of_class: int
    ) -> tuple[kv.Slots, ...]: ...


class Seating:
    """Rows that sit in slots, and those that wait for one.

    Attributes:
      seats: by ticket, those in slots.
      parked: by ticket, rows that were running and wait outside.
    """

    def __init__(self, slots: Lanes, control: Control, stats: Stats) -> None:
        """An empty house."""
        self.seats: dict[int, Seat] = {}
        self.parked: dict[int, Snapshot] = {}
        self._slots, self._control, self._stats = slots, control, stats
        self._queues: list[collections.deque[tuple[int, Request]]] = [collections.deque() for _ in slots.shape.classes]
        self._waiting: collections.Counter[tuple[int, ...]] = collections.Counter()
        self._prefilled: dict[tuple[int, ...], Source] = {}

    def ids(self, ticket: int) -> list[int]:
        """Ids of a row, prompt included. Raises ValueError if there is no such row."""
        if ticket in self.seats:
            return self.seats[ticket].ids
        if ticket not in self.parked:
            raise ValueError(f"there is no row {ticket}; the rows are {sorted([*self.seats, *self.parked])}")
        row = self.parked[ticket].row
        return np.asarray(row.tokens_BS)[0, : int(row.length_B[0])].tolist()

    def add(self, ticket: int, request: Request) -> None:
        """Put a request at the end of the queue of its class."""
        self._queues[self._slots.class_of(len(request.prompt_ids) + 1)].append((ticket, request))
        self._waiting[request.prompt_ids] += 1

    @property
    def is_queued(self) -> bool:
        """Somebody waits for a slot."""
        return any(self._queues) or bool(self.parked)

    def sit(self, ticket: int, snapshot: Snapshot, source_row: int = 0, *, since: int) -> None:
        """Put a row into a free slot of its class, of which there must be one."""
        row, request = snapshot.row, snapshot.request
        place = self._slots.enter((snapshot.cache, source_row), row, snapshot.of_class)
        length = int(np.asarray(row.length_B)[0])
        ids, forced, logprobs = (
            np.asarray(x)[0, :length].tolist() for x in (row.tokens_BS, row.forced_BS, row.logprob_BS)
        )
        status = int(np.asarray(row.status_B)[0])
        self.seats[ticket] = Seat(ticket, request, place, since, ids, forced, logprobs, snapshot.n_added, status)

    def sit_or_park(self, ticket: int, snapshot: Snapshot, *, since: int) -> None:
        """Put a row into a slot of its class, or keep it on the host until one is free."""
        if self._slots.n_free(snapshot.of_class):
            self.sit(ticket, snapshot, since=since)
        else:
            self.parked[ticket] = dataclasses.replace(snapshot, cache=jax.device_get(snapshot.cache))

    def rise(self, ticket: int) -> None:
        """Take a row away; the slot that it had is free, and what is in it may still run."""
        if self.parked.pop(ticket, None) is None:
            self._slots.leave(self.seats.pop(ticket).place)

    def refill(self, since: int) -> None:
        """Move full rows up, then seat rows parked outside, then new requests, as far as there are free slots.

        Args:
          since: number of the first window that they will be part of.
        """
        for seat in self.seats.values():
            above = seat.place.of_class + 1
            if self.is_full(seat) and self._slots.n_free(above):
                seat.place, seat.since = self._slots.move(seat.place, above), since
        for ticket, snapshot in list(self.parked.items()):
            if self._slots.n_free(snapshot.of_class):
                self.sit(ticket, self.parked.pop(ticket), since=since)
        self._seat_new(since)

    def is_full(self, seat: Seat) -> bool:
        """The row runs, and its next position lies outside its class."""
        return seat.status == RUN and len(seat.ids) > self._slots.shape.classes[seat.place.of_class][1]

    def _seat_new(self, since: int) -> None:
        chosen: list[tuple[int, Request]] = []
        for of_class, queue in enumerate(self._queues):
            chosen += [queue.popleft() for _ in range(min(len(queue), self._slots.n_free(of_class)))]
        if not chosen:
            return
        self._prefill(dict.fromkeys(request.prompt_ids for _, request in chosen))
        states = self._control.rows([request.control for _, request in chosen])
        for index, (ticket, request) in enumerate(chosen):
            state = jax.tree.map(lambda x, i=index: x[i : i + 1], states)
            row = requests.initial_row(request, state, self._slots.shape.max_length)
            cache, source_row = self._prefilled[request.prompt_ids]
            of_class = self._slots.class_of(len(request.prompt_ids) + 1)
            self.sit(ticket, Snapshot(request, of_class, cache, row), source_row, since=since)
        self._waiting -= collections.Counter(request.prompt_ids for _, request in chosen)
        self._forget()

    def _prefill(self, prompts: Iterable[tuple[int, ...]]) -> None:
        """Prefill those that are not there yet, bucket by bucket; samples of one prompt share it."""
        by_bucket: dict[tuple[int, int], list[tuple[int, ...]]] = {}
        for prompt in prompts:
            if prompt not in self._prefilled:
                by_bucket.setdefault(self._slots.bucket_of(len(prompt)), []).append(prompt)
        for (rows, _), group in by_bucket.items():
            for begin in range(0, len(group), rows):
                part = group[begin : begin + rows]
                self._prefilled.update(zip(part, self._slots.prefill(part), strict=True))
                self._stats.prefills += 1

    def _forget(self) -> None:
        """Drop prefilled prompts that nobody waits for, and the oldest batches above MAX_KEPT."""
        self._prefilled = {prompt: source for prompt, source in self._prefilled.items() if self._waiting[prompt]}
        batches = list(dict.fromkeys(id(cache) for cache, _ in self._prefilled.values()))
        kept = set(batches[-MAX_KEPT:])
        self._prefilled = {prompt: source for prompt, source in self._prefilled.items() if id(source[0]) in kept}

    # ------------------------------------------------------------------------------ rows that wait for their caller

    def snapshot(self, ticket: int) -> Snapshot:
        """A copy of a paused row.

        Raises:
          ValueError: no such row, or it runs: what it will be when its window ends is not known here.
        """
        if ticket in self.parked:
            return self.parked[ticket]
        seat = self._paused(ticket)
        cache, row = self._slots.read(seat.place)
        return Snapshot(seat.request, seat.place.of_class, cache, jax.device_get(row), seat.n_added)

    def _paused(self, ticket: int) -> Seat:
        paused = {ticket: seat for ticket, seat in self.seats.items() if seat.status == PAUSE}
        if ticket not in paused:
            raise ValueError(f"row {ticket} is not paused; the paused rows are {sorted(paused)}")
        return paused[ticket]

    def resume(self, ticket: int, *, since: int) -> None:
        """Let a paused row run. Raises ValueError as `snapshot`."""
        if ticket in self.parked:
            snapshot = self.parked[ticket]
            self.parked[ticket] = dataclasses.replace(snapshot, row=_with_status(snapshot.row, RUN))
            return
        seat = self._paused(ticket)
        self._slots.set_status([seat.place], RUN)
        seat.status, seat.since = RUN, since

    def drop(self, ticket: int) -> None:
        """End a paused row. Raises ValueError as `snapshot`."""
        self.rise(ticket if ticket in self.parked else self._paused(ticket).ticket)

    def extend(self, ticket: int, ids: Sequence[int], *, since: int) -> None:
        """Append ids, as forced ones, to a paused row; the control does not see them. The row stays paused.

        Raises ValueError as `snapshot`, and for more ids than there is room for beside what the control may still add.
        """
        snapshot, most = self.snapshot(ticket), self._slots.shape.max_length
        row, begin = snapshot.row, int(snapshot.row.length_B[0])
        end, n_added = begin + len(ids), snapshot.n_added + len(ids)
        n_prompt, room = len(snapshot.request.prompt_ids), snapshot.request.control.room
        if n_prompt + room + n_added > most:
            raise ValueError(
                f"row {ticket}: {n_prompt} ids of prompt, {room} that its control may keep and {n_added} appended are "
                f"above max_length={most}"
            )
        tokens_BS, forced_BS, logprob_BS = (np.array(x) for x in (row.tokens_BS, row.forced_BS, row.logprob_BS))
        tokens_BS[0, begin:end], forced_BS[0, begin:end] = ids, True
        logprob_BS[0, begin:end] = np.nan if snapshot.request.sampling.logprobs else 0.0
        of_class = max(snapshot.of_class, self._slots.class_of(end))
        cache = self._slots.extend(snapshot.cache, begin - 1, tokens_BS[0, begin - 1 : end].tolist(), of_class)
        row = dataclasses.replace(
            row, tokens_BS=tokens_BS, forced_BS=forced_BS, logprob_BS=logprob_BS, length_B=np.array([end], np.int32)
        )
        self.rise(ticket)
        self.sit_or_park(ticket, Snapshot(snapshot.request, of_class, cache, row, n_added), since=since)

    def restore(self, ticket: int, snapshot: Snapshot, request: Request | None, *, since: int) -> None:
        """Let a copy of a row run from where it was taken, under another request if one is given.

        The request has the same prompt and other limits, seed or sampling; or its prompt is all that the row has by
        now, and its control begins afresh.

        Raises:
          ValueError: its prompt is neither.
        """
        copy = dataclasses.replace(snapshot, row=_with_status(snapshot.row, RUN))
        if request is not None:
            control, draw = self._control_under(snapshot, request), requests.draw_of(request)
            n_added = snapshot.n_added if request.prompt_ids == snapshot.request.prompt_ids else 0
            row = dataclasses.replace(copy.row, control=control, draw=draw)
            copy = dataclasses.replace(copy, request=request, row=row, n_added=n_added)
        self.sit_or_park(ticket, copy, since=since)

    def _control_under(self, snapshot: Snapshot, request: Request) -> Any:
        row = snapshot.row
        if request.prompt_ids == snapshot.request.prompt_ids:
            if request.control == snapshot.request.control:
                return row.control
            state_row = self._control.refork(jax.tree.map(lambda x: x[0], row.control), request.control)
            return jax.tree.map(lambda x: np.asarray(x)[None], state_row)
        ids = tuple(np.asarray(row.tokens_BS)[0, : int(row.length_B[0])].tolist())
        if request.prompt_ids != ids:
            raise ValueError(
                f"request {request.id!r} has a prompt of {len(request.prompt_ids)} ids that is neither the row's "
                f"prompt ({len(snapshot.request.prompt_ids)} ids) nor all of its {len(ids)} ids"
            )
        return self._control.rows([request.control])


def _with_status(row: Row, status: int) -> Row:
    return dataclasses.replace(row, status_B=np.array([status], np.int32))
