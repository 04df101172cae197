"""Which row sits in which slot: the queue, prefill and its sharing, entering, moving up, waiting outside.

A row enters the smallest class that holds its prompt and one id more, and moves up when it is full. Where the class it
needs is full it waits, unchanged; rows of the largest class never need to move, so something always drains.
"""

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Protocol

import jax
import numpy as np

from s1jax.generate import requests
from s1jax.generate.automaton import RUN, Control
from s1jax.generate.requests import Request, Seat
from s1jax.generate.state import Place, Row, Shape, Source
from s1jax.models import cache as kv

MAX_PREFILLED = 4  # prefilled batches that are kept because requests with their prompts still wait


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A row outside of its slot: ids, cached positions, control state. The arrays have a leading axis 1.

    Attributes:
      request: what it runs.
      of_class: the length class it needs.
      cache, row: on the device or on the host.
    """

    request: Request
    of_class: int
    cache: tuple[kv.Slots, ...]
    row: Row


class Lanes(Protocol):
    """What seating needs of the device side; `s1jax.generate.slots.SlotTable` is it."""

    shape: Shape

    def class_of(self, length: int) -> int: ...
    def n_free(self, of_class: int) -> int: ...
    def bucket_of(self, prompt_length: int) -> tuple[int, int]: ...
    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[Source]: ...
    def enter(self, source: Source, row: Row, of_class: int) -> Place: ...
    def move(self, place: Place, of_class: int) -> Place: ...
    def leave(self, place: Place) -> None: ...


class Seating:
    """Rows that sit in slots, and those that wait for one.

    Attributes:
      seats: by ticket, those in slots.
      parked: by ticket, rows that were running and wait outside.
      n_prefills: prefill programs run so far.
    """

    def __init__(self, slots: Lanes, control: Control) -> None:
        """An empty house."""
        self.seats: dict[int, Seat] = {}
        self.parked: dict[int, Snapshot] = {}
        self.n_prefills = 0
        self._slots, self._control = slots, control
        self._queues: list[collections.deque[tuple[int, Request]]] = [collections.deque() for _ in slots.shape.classes]
        self._waiting: collections.Counter[tuple[int, ...]] = collections.Counter()
        self._prefilled: dict[tuple[int, ...], Source] = {}

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
        mirror = [np.asarray(x)[0, :length].tolist() for x in (row.tokens_BS, row.forced_BS, row.logprob_BS)]
        self.seats[ticket] = Seat(ticket, request, place, since, *mirror, status=int(np.asarray(row.status_B)[0]))

    def sit_or_park(self, ticket: int, snapshot: Snapshot, *, since: int) -> None:
        """Put a row into a slot of its class, or keep it on the host until one is free."""
        if self._slots.n_free(snapshot.of_class):
            self.sit(ticket, snapshot, since=since)
        else:
            self.parked[ticket] = dataclasses.replace(snapshot, cache=jax.device_get(snapshot.cache))

    def rise(self, ticket: int) -> None:
        """Free the slot of a row."""
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
                self.n_prefills += 1

    def _forget(self) -> None:
        """Drop prefilled prompts that nobody waits for, and the oldest batches above MAX_PREFILLED."""
        self._prefilled = {prompt: source for prompt, source in self._prefilled.items() if self._waiting[prompt]}
        batches = list(dict.fromkeys(id(cache) for cache, _ in self._prefilled.values()))
        kept = set(batches[-MAX_PREFILLED:])
        self._prefilled = {prompt: source for prompt, source in self._prefilled.items() if id(source[0]) in kept}
