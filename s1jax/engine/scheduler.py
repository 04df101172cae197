"""Which row has which slot: the queue, prefill and its sharing, entering, moving up, waiting outside.

A row enters the smallest class that holds its prompt and one token more, and moves up when it is full. Where the class
it needs is full it waits, unchanged; rows of the largest class never need to move, so something always drains. Rows
that are paused give their slots to rows that wait, and come back bit for bit when they are resumed.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Protocol

import jax
import numpy as np

from s1jax.config import BadInput
from s1jax.engine import cache as kv
from s1jax.engine import requests, snapshots
from s1jax.engine.protocol import PAUSE, RUN, Automaton
from s1jax.engine.requests import HostRow, Listener, Request, SlotIndex
from s1jax.engine.snapshots import Parked, Snapshot, Waiting
from s1jax.engine.state import MAX_KEPT, CachedPrompt, DeviceRows, Shape
from s1jax.text.tokens import Tokenizer


@dataclasses.dataclass
class Stats:
    """Counted since the engine was made.

    Attributes:
      windows, prefills: programs run.
      row_steps: steps that rows ran. slot_steps: steps that slots could have run.
      queued_row_steps, queued_slot_steps: the same in windows that began while a row waited for a slot.
    """

    windows: int = 0
    prefills: int = 0
    row_steps: int = 0
    slot_steps: int = 0
    queued_row_steps: int = 0
    queued_slot_steps: int = 0


class DeviceSlots(Protocol):
    """What scheduler needs of the device side; `s1jax.engine.slots.SlotTable` is it."""

    shape: Shape

    def class_of(self, length: int) -> int: ...
    def n_free(self, of_class: int) -> int: ...
    def bucket_of(self, prompt_length: int) -> tuple[int, int]: ...
    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[CachedPrompt]: ...
    def enter(self, source: CachedPrompt, row: DeviceRows, of_class: int) -> SlotIndex: ...
    def read(self, place: SlotIndex) -> tuple[tuple[kv.Slots, ...], DeviceRows]: ...
    def move(self, place: SlotIndex, of_class: int) -> SlotIndex: ...
    def leave(self, place: SlotIndex) -> None: ...
    def set_status(self, places: Sequence[SlotIndex], status: int) -> None: ...
    def extend(
        self, cache: tuple[kv.Slots, ...], start: int, ids: Sequence[int], of_class: int
    ) -> tuple[kv.Slots, ...]: ...


class Scheduler:
    """Rows in slots, and those that wait for one.

    Attributes:
      rows: by ticket, those in slots.
      parked: by ticket, rows that wait outside.
      held: by ticket, requests that were paused before they began.
    """

    def __init__(
        self, slots: DeviceSlots, automaton: Automaton, stats: Stats, tokenizer: Tokenizer, identity: str
    ) -> None:
        """No rows yet."""
        self.rows: dict[int, HostRow] = {}
        self.parked: dict[int, Parked] = {}
        self.held: dict[int, Waiting] = {}
        self._slots, self._automaton, self._stats = slots, automaton, stats
        self._tokenizer, self._identity = tokenizer, identity
        self._queues: list[dict[int, Waiting]] = [{} for _ in slots.shape.classes]
        self._waiting: collections.Counter[tuple[int, ...]] = collections.Counter()
        self._prefilled: dict[tuple[int, ...], CachedPrompt] = {}

    @property
    def tickets(self) -> list[int]:
        """All rows that have not ended."""
        return sorted(itertools.chain(self.rows, self.parked, self.held, *self._queues))

    def waiting(self, ticket: int) -> Waiting | None:
        """The request of a row that has not begun."""
        return next((queue[ticket] for queue in [self.held, *self._queues] if ticket in queue), None)

    def add(self, ticket: int, entry: Waiting) -> None:
        """Put a request at the end of the queue of its class."""
        queue = self._queues[self._class_of(entry.request)]
        self._waiting[entry.request.prompt_ids] += 1
        queue[ticket] = entry

    def listener(self, ticket: int) -> Listener:
        """Who hears of a row that has not ended."""
        entry = self.rows.get(ticket) or self.parked.get(ticket) or self.waiting(ticket)
        assert entry is not None
        return entry.listener

    def request(self, ticket: int) -> Request:
        """What a row runs that has not ended."""
        if ticket in self.parked:
            return self.parked[ticket].snapshot.request
        entry = self.rows.get(ticket) or self.waiting(ticket)
        assert entry is not None
        return entry.request

    def forget_prompts(self, identity: str) -> None:
        """Drop prefilled prompts: the weights have changed, and with them what snapshots fit."""
        self._prefilled, self._identity = {}, identity

    def ids(self, ticket: int) -> list[int]:
        """Tokens of a row, prompt included. Raises BadInput if there is no such row."""
        if ticket in self.rows:
            return self.rows[ticket].ids
        if ticket in self.parked:
            return list(self.parked[ticket].snapshot.token_ids)
        entry = self.waiting(ticket)
        if entry is None:
            raise BadInput(f"there is no row {ticket}; the rows are {self.tickets}")
        return list(entry.request.prompt_ids)

    @property
    def is_queued(self) -> bool:
        """Some row waits for a slot."""
        return any(self._queues) or any(parked.status == RUN for parked in self.parked.values())

    def is_full(self, row: HostRow) -> bool:
        """The row runs, and its next position lies outside its class."""
        return row.status == RUN and len(row.ids) > self._slots.shape.classes[row.place.of_class][1]

    # --------------------------------------------------------------------------------------------- into slots, and out

    def enter(self, ticket: int, parked: Parked, source_row: int = 0, *, since: int) -> None:
        """Put a row into a free slot of its class, of which there must be one."""
        snapshot = parked.snapshot
        place = self._slots.enter((snapshot.cache, source_row), snapshot.row, snapshot.of_class)
        self.rows[ticket] = self._mirror(ticket, parked, place, since)

    def unpark(self, ticket: int) -> HostRow:
        """The mirror that a row outside of slots would have."""
        return self._mirror(ticket, self.parked[ticket], SlotIndex(0, 0), 0)

    def _mirror(self, ticket: int, parked: Parked, place: SlotIndex, since: int) -> HostRow:
        snapshot, row = parked.snapshot, parked.snapshot.row
        ids, forced, logprobs = (
            np.asarray(x)[0, : snapshot.length].tolist() for x in (row.tokens_BS, row.forced_BS, row.logprob_BS)
        )
        mirror = HostRow(ticket, snapshot.request, parked.listener, place, since, ids, forced, logprobs, parked.status)
        return requests.follow_stops(mirror, self._tokenizer)

    def enter_or_park(self, ticket: int, parked: Parked, *, since: int) -> None:
        """Put a row into a slot of its class, or keep it on the host until one is free."""
        if self._slots.n_free(parked.snapshot.of_class):
            self.enter(ticket, parked, since=since)
        else:
            self.parked[ticket] = parked.on_host()

    def release(self, ticket: int) -> None:
        """Take a row away; the slot that it had is free, and what is in it may still run."""
        for queue in self._queues:
            if ticket in queue:
                self._waiting[queue.pop(ticket).request.prompt_ids] -= 1
                return
        if self.parked.pop(ticket, None) is None and self.held.pop(ticket, None) is None:
            self._slots.leave(self.rows.pop(ticket).place)

    def refill(self, since: int) -> list[tuple[int, Waiting, Exception]]:
        """Move full rows up, then rows parked outside in, then new requests, as far as there are free slots.

        Args:
          since: number of the first window that they will be part of.

        Returns: requests that failed on their way in, with their tickets and errors.
        """
        for row in list(self.rows.values()):
            above = row.place.of_class + 1
            if self.is_full(row) and self._make_room(above):
                row.place, row.since = self._slots.move(row.place, above), since
        for ticket, parked in list(self.parked.items()):
            if parked.status == RUN and self._make_room(parked.snapshot.of_class):
                self.enter(ticket, parked, since=since)
                del self.parked[ticket]
        return self._enter_new(since)

    def _make_room(self, of_class: int, n: int = 1) -> int:
        """Free slots of the class; where there are fewer than `n`, paused rows give theirs up."""
        paused = (t for t, row in self.rows.items() if row.status == PAUSE and row.place.of_class == of_class)
        for ticket in list(itertools.islice(paused, max(n - self._slots.n_free(of_class), 0))):
            waiting = Parked(self.snapshot(ticket), self.rows[ticket].listener).on_host()
            self.release(ticket)
            self.parked[ticket] = waiting
        return self._slots.n_free(of_class)

    def _enter_new(self, since: int) -> list[tuple[int, Waiting, Exception]]:
        chosen: dict[int, Waiting] = {}
        for of_class, queue in enumerate(self._queues):
            n = min(len(queue), self._make_room(of_class, len(queue)) if queue else 0)
            chosen |= {ticket: queue[ticket] for ticket in itertools.islice(queue, n)}
        if not chosen:
            return []
        rows, failures = {}, []
        for ticket, entry in chosen.items():
            try:
                state = self._automaton.rows([entry.request.control])
                rows[ticket] = snapshots.initial_row(entry.request, state, self._slots.shape.max_length)
            except Exception as error:  # the control's fault, which is no other row's
                failures.append((ticket, entry, error))
                self.release(ticket)
        self._prefill(dict.fromkeys(chosen[ticket].request.prompt_ids for ticket in rows))
        # A request leaves its queue when its row is in: whatever fails on the way is heard of once, by all who wait.
        for ticket, row in rows.items():
            request = chosen[ticket].request
            cache, source_row = self._prefilled[request.prompt_ids]
            snapshot = Snapshot(request, self._class_of(request), cache, row)
            self.enter(ticket, Parked(snapshot, chosen[ticket].listener), source_row, since=since)
            del self._queues[snapshot.of_class][ticket]
            self._waiting[request.prompt_ids] -= 1
        self._forget()
        return failures

    def _class_of(self, request: Request) -> int:
        return self._slots.class_of(len(request.prompt_ids) + 1)

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
        """Drop prefilled prompts that no row waits for, and the oldest batches above MAX_KEPT."""
        self._prefilled = {prompt: source for prompt, source in self._prefilled.items() if self._waiting[prompt] > 0}
        batches = list(dict.fromkeys(id(cache) for cache, _ in self._prefilled.values()))
        kept = set(batches[-MAX_KEPT:])
        self._prefilled = {prompt: source for prompt, source in self._prefilled.items() if id(source[0]) in kept}

    # ------------------------------------------------------------------------------ rows that wait for their caller

    def snapshot(self, ticket: int) -> Snapshot:
        """A copy of a paused row. Raises BadInput: no such row, or not paused; what it will be is not known here."""
        if ticket in self.parked and self.parked[ticket].status == PAUSE:
            return self.parked[ticket].snapshot
        row = self._paused(ticket)
        cache, device_row = self._slots.read(row.place)
        return Snapshot(row.request, row.place.of_class, cache, jax.device_get(device_row), self._identity)

    def _paused(self, ticket: int) -> HostRow:
        if ticket not in self.rows or self.rows[ticket].status != PAUSE:
            paused = [t for t, row in self.rows.items() if row.status == PAUSE]
            paused += [t for t, parked in self.parked.items() if parked.status == PAUSE]
            if ticket in self.held:
                raise BadInput(f"row {ticket} was paused before it began, there is nothing of it yet; resume it first")
            raise BadInput(f"row {ticket} is not paused; the paused rows are {sorted(paused)}")
        return self.rows[ticket]

    def pause(self, ticket: int) -> bool:
        """Let a row wait for its caller. Returns whether it waits at once; a running one does after its window.

        Raises:
          BadInput: no such row.
        """
        if ticket in self.rows:
            row = self.rows[ticket]
            if row.status == RUN:
                self._slots.set_status([row.place], PAUSE)
            return False
        for queue in self._queues:
            if ticket in queue:
                self.held[ticket] = queue.pop(ticket)
                self._waiting[self.held[ticket].request.prompt_ids] -= 1
                return True
        if ticket in self.parked and self.parked[ticket].status == RUN:
            self.parked[ticket] = self.parked[ticket].with_status(PAUSE)
            return True
        if ticket not in self.parked and ticket not in self.held:
            raise BadInput(f"there is no row {ticket}; the rows are {self.tickets}")
        return False

    def resume(self, ticket: int, *, since: int) -> None:
        """Let a paused row run. Raises BadInput as `snapshot`."""
        if ticket in self.held:
            entry = self.held.pop(ticket)
            self.add(ticket, entry)
        elif ticket in self.parked and self.parked[ticket].status == PAUSE:
            self.parked[ticket] = self.parked[ticket].with_status(RUN)
        else:
            row = self._paused(ticket)
            self._slots.set_status([row.place], RUN)
            row.status, row.since = RUN, since

    def extend(self, ticket: int, ids: Sequence[int], *, since: int) -> None:
        """Append tokens, as forced ones, to a paused row. The row stays paused.

        Raises BadInput as `snapshot`, and for what the control refuses; nothing has changed then.
        """
        snapshot, listener = self.snapshot(ticket), self.listener(ticket)
        begin, end = snapshot.length, snapshot.length + len(ids)
        if end >= self._slots.shape.max_length:
            raise BadInput(f"row {ticket}: {begin} tokens and {len(ids)} more fill max_length; give fewer")
        row = snapshots.extended_row(snapshot, ids, self._automaton)
        of_class = max(snapshot.of_class, self._slots.class_of(end))
        tail = np.asarray(row.tokens_BS)[0, begin - 1 : end].tolist()
        cache = self._slots.extend(snapshot.cache, begin - 1, tail, of_class)
        self.release(ticket)
        changed = dataclasses.replace(snapshot, of_class=of_class, cache=cache, row=row)
        self.enter_or_park(ticket, Parked(changed, listener), since=since)
