"""The decode engine: requests in, `Completion`s out, any number of them through a fixed number of slots.

    engine = Engine(model, tokenizer, EngineConfig(max_length=4096), automata(tokenizer, model.config.V, [config]))
    control = CONTROLS["budget"]
    ids = (*prompt_ids, *control.header(config, tokenizer))
    settings = control.admit(config, tokenizer, prompt_length=len(ids), max_length=4096, max_new_tokens=1000)
    engine.submit(Request(id="q1", sample=0, seed=0, prompt_ids=ids, control=settings, sampling=SamplingConfig()))
    completions = engine.run(on_done=lambda completion: ...)       # also returned, in the order of submission

One engine is one copy of the model; its programs are compiled once for any lengths. **Promise**: within one engine
(`Engine.identity`) a request's tokens and log-probabilities are the same alone, in company, in any slot of its class,
in any order and under any window: its class, its prefill bucket and the length at which it moves up depend on the row
alone. Across engines (other slots, mesh, types or controls) tokens are equal except at near ties.

**Threads**: every method may be called from any thread, and from a listener. Programs run in one thread: the one that
`start` begins, or the caller of `run`, which serves the calls of the others between two windows. Nothing that is
refused has touched a row. An error in one row ends that row, with `finish_reason` `error`, and no other.
"""

import dataclasses
import functools
import hashlib
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import numpy as np

from s1jax.config import BadInput
from s1jax.engine import cache as kv
from s1jax.engine import requests
from s1jax.engine.config import EngineConfig, resolve_classes
from s1jax.engine.loop import DecodeLoop, out_of_memory
from s1jax.engine.memory import plan
from s1jax.engine.mixed import mix
from s1jax.engine.protocol import Automaton
from s1jax.engine.requests import Listener, Request
from s1jax.engine.sampling import SamplingParams
from s1jax.engine.scheduler import Scheduler, Stats
from s1jax.engine.slots import Buckets, SlotTable
from s1jax.engine.snapshots import Parked, Snapshot, Waiting, copy_of
from s1jax.engine.state import Shape
from s1jax.engine.weights import prepare
from s1jax.engine.worker import Worker
from s1jax.models.decoder import Decoder, Unstacked
from s1jax.records import Completion
from s1jax.text.tokens import Tokenizer


class Engine(Worker):
    """Slots, a queue, and the loop that keeps the slots filled.

    Attributes:
      max_length: most tokens of prompt and completion.
      vocab_size: rows of the model's head.
      kinds: kinds of control that it was made for.
      memory: where its device memory goes.
      stats: what it has done so far.
      most_slots: what `slots: auto` could have been, whatever was asked for.
      identity: what its promise holds within: model sizes, slots, types, mesh, device kind, kinds of control, and the
        sampling parameters that its program reads.
    """

    def __init__(
        self,
        model: Decoder | Unstacked,
        tokenizer: Tokenizer,
        config: EngineConfig,
        controls: Mapping[str, Automaton],
        *,
        dtype: Literal["float32", "bfloat16"] = "float32",
        mesh: jax.sharding.Mesh | None = None,
        notify: Callable[[str], None] = lambda _: None,
        most_rows: int | None = None,
    ) -> None:
        """Lay the weights out for decoding.

        Args:
          controls: the automaton of each kind of control (`s1jax.control.automata`).
          dtype: compute type.
          mesh: of `tensor` devices only; None: one device.
          notify: gets one line before the first compilation, and one that says what is in memory.
          most_rows: with `slots: auto`, no more slots than this; None: as many as fit.

        Raises:
          BadInput: a configuration that cannot be.
        """
        super().__init__()
        self._default_done: Callable[[int, Completion], None] | None = None
        self._default_paused: Callable[[int], None] | None = None
        resolve_classes(config, model.config, 1)  # refuses before the weights are touched
        if mesh is not None and mesh.size != mesh.shape["tensor"]:
            raise BadInput(
                f"an engine lies on `tensor` devices alone, the mesh is {dict(mesh.shape)}; set the others to 1"
            )
        self._prepare = lambda model: prepare(model, config.weights or dtype, mesh)
        prepared = self._prepare(model)
        size = kv.Size(model.config.L, model.config.K, model.config.H, config.cache or dtype)
        self.memory = plan(config, prepared, size, prefill_ids=config.prefill_ids, most_rows=most_rows)
        self.most_slots = self.memory.most_slots
        notify(str(self.memory))
        self._shape = Shape(self.memory.classes, config.window, dtype)
        # Rows that no slot waits for would be computed for nothing.
        buckets = Buckets(config.prefill_smallest, min(config.prefill_rows, self._shape.rows), config.prefill_ids)
        self.max_length, self.vocab_size, self.stats = self._shape.max_length, model.config.V, Stats()
        self._tokenizer, self._ahead = tokenizer, config.ahead
        self._about = {
            "model": str(model.config),
            "slots": [list(shape) for shape in self._shape.classes],
            "dtype": dtype,
            "weights": config.weights or dtype,
            "cache": size.dtype,
            "prefill": dataclasses.asdict(buckets),
            "sampling": [field.name for field in dataclasses.fields(SamplingParams)],
            "devices": 1 if mesh is None else mesh.size,
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
        }
        self._new_slots = functools.partial(
            SlotTable, shape=self._shape, size=size, buckets=buckets, mesh=mesh, notify=notify
        )
        self._tickets, self._n_loads = itertools.count(), 0
        self._unheard: list[tuple[int, Completion | None]] = []  # None: it has paused
        self._kept: dict[int, Completion] = {}
        self._default = Listener(self._done, self._paused, None)
        self._lay_out(prepared, controls)

    def _lay_out(self, model: Unstacked, controls: Mapping[str, Automaton]) -> None:
        self._automaton, self.kinds = mix(controls)
        self.identity = {**self._about, "controls": sorted(self.kinds), "tables": _fingerprint(self._automaton)}
        self._slots = self._new_slots(model, self._automaton)
        scheduler = Scheduler(self._slots, self._automaton, self.stats, self._tokenizer, self._snapshot_identity)
        self._loop = DecodeLoop(self._slots, scheduler, self._automaton, self._tokenizer, self.stats, ahead=self._ahead)

    @property
    def _snapshot_identity(self) -> str:
        """Of engines that a snapshot fits: alike, and with as many changes of weights behind them."""
        return f"{self.identity}, weights {self._n_loads}"

    @property
    def n_slots(self) -> int:
        """Rows at the same time."""
        return self._shape.rows

    @property
    def programs(self) -> frozenset[tuple]:
        """Names of the programs compiled so far; bounded by classes and buckets, whatever is asked."""
        return frozenset(self._slots.programs)

    # ------------------------------------------------------------------------------------------------- rows, by ticket

    def submit(self, request: Request, listener: Listener | None = None) -> int:
        """Queue a request; the ticket returned names its row from now on.

        Args:
          listener: who hears of it; None: whoever calls `run`.

        Raises:
          BadInput: it cannot run.
        """
        self._check(request)
        ticket = next(self._tickets)
        self._hand_in(lambda: self._loop.scheduler.add(ticket, Waiting(request, listener or self._default)))
        return ticket

    def _hand_in(self, function: Callable[[], None]) -> None:
        """Have something done before the next window, without waiting for it."""
        if self.has_turn:
            function()
        else:
            self.post(function)

    def _check(self, request: Request) -> None:
        requests.check(request, self._tokenizer, self.max_length)
        if request.control.kind not in self.kinds:
            raise BadInput(
                f"{request.name} has control.kind={request.control.kind}, this engine was made for "
                f"{', '.join(sorted(self.kinds))}; make it for that one too"
            )
        self._automaton.rows([request.control])  # refuses what the control was not built for, before any work

    def cancel(self, ticket: int) -> None:
        """End a row whatever it does; its listener gets what there is, with `finish_reason` `cancelled`.

        A running row ends within two windows. A row that has ended, or that never was, is left alone.
        """
        self._hand_in(lambda: self._loop.cancel(ticket))

    def pause(self, ticket: int) -> None:
        """Let a row wait; its listener hears of it when it does, within two windows. BadInput: there is no such row."""
        self.call(lambda: self._loop.pause(ticket))

    def resume(self, ticket: int) -> None:
        """Let a paused row run. Raises BadInput for a row that is not paused, as all that follow."""
        self.call(lambda: self._loop.scheduler.resume(ticket, since=self._loop.next_window))

    def ids(self, ticket: int) -> list[int]:
        """Tokens of a row so far, prompt included."""
        return self.call(lambda: list(self._loop.scheduler.ids(ticket)))

    def snapshot(self, ticket: int) -> Snapshot:
        """A copy of a paused row: its tokens, cached positions and control state."""
        return self.call(lambda: self._loop.scheduler.snapshot(ticket))

    def restore(self, snapshot: Snapshot, request: Request | None = None, listener: Listener | None = None) -> int:
        """Let a copy run from where it was taken; the ticket of the new row.

        Args:
          request: with the row's prompt, and another seed, sampling or limits; or with all of the row's tokens as its
            prompt and a fresh control (a probe). None: as it was.
          listener: as in `submit`.

        Raises:
          BadInput: it cannot run, has another prompt, the row is beyond its limits, or the snapshot is of an engine of
            another identity.
        """
        if request is not None:
            self._check(request)
        if snapshot.identity != self._snapshot_identity:
            raise BadInput(
                f"the snapshot is of an engine {snapshot.identity}, this one is {self._snapshot_identity}; restore it "
                "in an engine made alike"
            )

        def enter() -> int:
            copy, ticket = copy_of(snapshot, request, self._automaton), next(self._tickets)
            parked = Parked(copy, listener or self._default)
            self._loop.scheduler.enter_or_park(ticket, parked, since=self._loop.next_window)
            return ticket

        return self.call(enter)

    def fork(self, ticket: int, forks: Sequence[Request], listener: Listener | None = None) -> list[int]:
        """Tickets of copies of a paused row, each under its own request (see `restore`); the row stays paused.

        One of them that cannot run is refused before any is made.
        """

        def enter() -> list[int]:
            snapshot = self._loop.scheduler.snapshot(ticket)
            for request in forks:
                self._check(request)
                copy_of(snapshot, request, self._automaton)
            return [self.restore(snapshot, request, listener) for request in forks]

        return self.call(enter)

    def extend(self, ticket: int, ids: Sequence[int]) -> None:
        """Append tokens, marked as forced, to a paused row by one forward pass. Its control counts them.

        Raises:
          BadInput: no tokens, one that the tokenizer does not have, more than fit, or what the control refuses.
        """
        ids = [int(token) if isinstance(token, np.integer) else token for token in ids]
        if not ids:
            raise BadInput(f"row {ticket}: there are no tokens to append; give at least one")
        requests.check_tokens(ids, self._tokenizer, f"row {ticket}")
        self.call(lambda: self._loop.scheduler.extend(ticket, ids, since=self._loop.next_window))

    def score(self, row: int | Sequence[int]) -> np.ndarray:
        """Log-softmax of the raw logits at each token of a row (its ticket) or of given ones: float32, 0 at the first.

        Raises:
          BadInput: no such row, no tokens, more than `max_length`, or one that the tokenizer does not have.
        """
        if isinstance(row, int | np.integer):
            row = int(row)
            return self.call(lambda: self._slots.score(self._loop.scheduler.ids(row)))
        if not 0 < len(row) <= self.max_length:
            raise BadInput(f"{len(row)} tokens cannot be scored; give 1 to max_length={self.max_length}")
        requests.check_tokens(row, self._tokenizer, "the text to score")
        return self.call(lambda: self._slots.score(row))

    # ------------------------------------------------------------------------------------------------ the whole engine

    def load(self, model: Decoder | Unstacked) -> None:
        """Take new weights of the same shapes; nothing is compiled again.

        Raises:
          BadInput: rows live, or the shapes are others.
        """

        def replace() -> None:
            self._refuse_live("new weights")
            self._slots.replace_model(self._prepare(model))
            self._n_loads += 1
            self._loop.scheduler.forget_prompts(self._snapshot_identity)

        self.call(replace)

    def set_controls(self, controls: Mapping[str, Automaton]) -> None:
        """Be an engine for other controls, with the same weights. Raises BadInput while rows live."""

        def replace() -> None:
            self._refuse_live("other controls")
            self._lay_out(self._slots.model, controls)

        self.call(replace)

    def _refuse_live(self, what: str) -> None:
        if tickets := self._loop.scheduler.tickets:
            raise BadInput(f"{what} cannot come while {len(tickets)} rows live; cancel them or wait until they end")

    def run(
        self,
        on_done: Callable[[Completion], None] | None = None,
        *,
        on_pause: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """Work until nothing can run any more: all rows have ended, or those left are paused.

        Rows with a listener of their own are worked on too, and told to it alone.

        Args:
          on_done: gets each completion as its row ends.
          on_pause: gets the ticket of each row that pauses.

        Returns: all completions of this call, in the order of their tickets.
        """
        found, self._kept = self._kept, {}

        def done(ticket: int, completion: Completion) -> None:
            found[ticket] = completion
            if on_done is not None:
                on_done(completion)

        def begin() -> None:
            self._default_done, self._default_paused = done, on_pause
            while self._unheard:
                ticket, completion = self._unheard.pop(0)
                if completion is not None:
                    done(ticket, completion)
                elif on_pause is not None:
                    on_pause(ticket)

        try:
            self.work(begin)
        except BaseException:
            self._kept = found  # the next call returns them
            raise
        finally:
            if self._default_done is done:
                self._default_done = self._default_paused = None
        return [found[ticket] for ticket in sorted(found)]

    def _done(self, ticket: int, completion: Completion) -> None:
        if self._default_done is None:
            self._unheard.append((ticket, completion))
        else:
            self._default_done(ticket, completion)

    def _paused(self, ticket: int) -> None:
        if self._default_done is None:
            self._unheard.append((ticket, None))
        elif self._default_paused is not None:
            self._default_paused(ticket)

    def advance(self) -> bool:
        """One round: fill free slots, dispatch a window, read the report of the one before. False: nothing to do.

        Raises:
          BadInput: the device is out of memory. Whatever a listener raised, after the round.
        """
        try:
            has_worked = self._loop.advance()
        except jax.errors.JaxRuntimeError as error:
            raise out_of_memory(error, self.memory) from error
        raised = self._loop.take_raised()
        for error in raised if self.is_in_own_thread else []:  # nobody to raise it to, and no reason for others to end
            logging.getLogger(__name__).error("a listener raised", exc_info=error)
        if raised and not self.is_in_own_thread:
            raise raised[0]
        return has_worked

    def fail(self, error: BaseException) -> None:
        """Tell all rows that the engine has stopped."""
        self._loop.fail(error)

    def cancel_all(self) -> None:
        """Cancel every row that lives."""
        self.call(lambda: [self._loop.cancel(ticket) for ticket in self._loop.scheduler.tickets])


def _fingerprint(automaton: Automaton) -> str:
    """A hash of an automaton's tables."""
    digest = hashlib.sha256(str(jax.tree.structure(automaton)).encode())
    for leaf in jax.tree.leaves(automaton):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]
