"""From what methods ask for to rows of engines, and back. Lives in the event loop; engines have their own threads."""

import asyncio
import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from s1jax import control as controls
from s1jax.config import BadInput
from s1jax.engine.requests import Request
from s1jax.methods import sweep
from s1jax.methods.sharing import SharedRow, plan
from s1jax.methods.task import Ask, Keep, Turn
from s1jax.records import Completion
from s1jax.text.tokens import Tokenizer

POLL_SECONDS = 0.01
OnProgress = Callable[[Ask, list[int], list[bool], int], None]


@dataclasses.dataclass(frozen=True)
class _Pending:
    """One ask, who waits for it, and what keeps its completion."""

    ask: Ask
    future: asyncio.Future
    keep: Keep

    def resolve(self, completion: Completion) -> None:
        if self.future.done():
            return
        try:
            if completion.is_finished:
                self.keep(completion)
            self.future.set_result(completion)
        except Exception as error:
            self.future.set_exception(error)


class Router:
    """Asks that come together share rows (`s1jax.methods.sharing.plan`)."""

    def __init__(
        self,
        engine: Callable[[str], Any],
        tokenizer: Tokenizer,
        encode: Callable[[Sequence[Turn], Any], tuple[int, ...]],
        on_progress: OnProgress | None = None,
    ) -> None:
        """For the running event loop.

        Args:
          engine: id of a prompt -> the engine of this process that completes its rows.
          encode: messages and control -> tokens of a prompt, the control's header included.
          on_progress: gets an ask, its tokens so far, which were forced, and how many are thinking, after each window.
        """
        self._engine, self._encode = engine, encode
        self._tokenizer, self._on_progress = tokenizer, on_progress
        self._loop = asyncio.get_running_loop()
        self._pending: list[_Pending] = []
        self._flush: asyncio.Task | None = None

    def engine(self, id: str, /) -> Any:
        """The engine that completes the rows of a prompt."""
        return self._engine(id)

    def prompt_ids(self, messages: Sequence[Turn], control: Any) -> tuple[int, ...]:
        """Tokens of a chat, the control's header included."""
        return self._encode(messages, control)

    def answer_text(self, completion: Completion, ask: Ask) -> str:
        """See `answer_text`."""
        return answer_text(completion, self._tokenizer, ask.control, ask.sampling.stop)

    def request(self, ask: Ask) -> Request:
        """The request of an engine. Raises BadInput, with the prompt's id, for a row that cannot run."""
        return request_of(ask, self._tokenizer, self.engine(ask.id).max_length)

    async def ask(self, ask: Ask, keep: Keep) -> Completion:
        """Complete one row. Cancelled with the task that waits for it, if no other ask shares its row.

        Args:
          keep: gets a finished completion before anybody else does, and before the engine goes on: what it writes is
            safe whatever happens next.
        """
        self.request(ask)  # what cannot run is refused here, where it fails no other ask
        plan([ask])
        future: asyncio.Future[Completion] = self._loop.create_future()
        self._pending.append(_Pending(ask, future, keep))
        if self._flush is None:
            self._flush = self._loop.create_task(self._submit_pending())
        return await future

    async def _submit_pending(self) -> None:
        """Wait until nobody asks for more in the same breath, then submit it all, alike rows once."""
        n_seen = -1
        while n_seen < len(self._pending):
            n_seen = len(self._pending)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        pending, self._pending, self._flush = self._pending, [], None
        waiting = {id(one.ask): one for one in pending}
        try:
            for row in plan(one.ask for one in pending):
                self._submit(row, waiting)
        except BaseException as error:
            for one in pending:
                if not one.future.done():
                    one.future.set_exception(error)

    def _submit(self, row: SharedRow, waiting: Mapping[int, "_Pending"]) -> None:
        """Queue the leader with its forks; a fork whose limit is not below the leader's is a row of its own."""
        asks = {self.request(of_one[0]): of_one for of_one in (row.leader, *row.forks)}
        leader, *forks = asks
        entry = controls.CONTROLS[leader.control.kind]
        limit = entry.sweep.limit if entry.sweep is not None else lambda settings: 0
        below = [fork for fork in forks if limit(fork.control) < limit(leader.control)]
        engine = self.engine(leader.id)
        live: dict[int, int] = {}

        def done(request: Request, completion: Completion) -> None:
            self._hand_over(engine, [waiting[id(ask)] for ask in asks[request]], completion)

        def cancelled(ticket: int, future: asyncio.Future) -> None:
            if future.cancelled():
                live[ticket] -= 1
                if live[ticket] == 0:
                    engine.cancel(ticket)

        for request, branches in [(leader, below), *((fork, []) for fork in forks if fork not in below)]:
            watch = None if self._on_progress is None else functools.partial(self._watched, asks[request][0])
            ticket = sweep.submit(engine, entry.sweep, request, branches, done, watch)
            futures = [waiting[id(ask)].future for each in (request, *branches) for ask in asks[each]]
            live[ticket] = len(futures)
            for future in futures:
                future.add_done_callback(functools.partial(cancelled, ticket))

    def _hand_over(self, engine: Any, asked: Sequence["_Pending"], completion: Completion) -> None:
        """Called in an engine's thread: wait until the completion is kept, unless the loop has ended.

        Meanwhile calls are served: the loop's thread may wait for one of them.
        """
        kept = threading.Event()

        def resolve() -> None:
            for one in asked:
                one.resolve(completion)
            kept.set()

        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(resolve)
            while not kept.wait(POLL_SECONDS) and self._loop.is_running():
                engine.serve()

    def _watched(self, ask: Ask, _: int, ids: list[int], forced: list[bool], thinking: int) -> None:
        if self._on_progress is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody watches any more
                self._loop.call_soon_threadsafe(self._on_progress, ask, ids, forced, thinking)


def request_of(ask: Ask, tokenizer: Tokenizer, max_length: int) -> Request:
    """The request of an ask, in rows of `max_length` tokens. Raises BadInput, with its id, for one that cannot run."""
    most = ask.sampling.max_new_tokens
    try:
        settings = controls.of(ask.control).admit(
            ask.control,
            tokenizer,
            prompt_length=len(ask.prompt_ids),
            max_length=max_length,
            max_new_tokens=max_length if most is None else most,
        )
    except BadInput as error:
        raise BadInput(f"prompt {ask.id!r}: {error}") from None
    return Request(ask.id, ask.sample, ask.seed, ask.prompt_ids, settings, ask.sampling)


def answer_text(completion: Completion, tokenizer: Tokenizer, control: Any, stops: Sequence[str] = ()) -> str:
    """The answer segment: what follows the end of thinking, without the headers; "" if thinking never ended.

    Words of a forced closing that belong to the answer ("Final Answer:") stay.
    """
    forced = tokenizer.decode(completion.token_ids[completion.thinking_tokens : completion.answer_offset])
    drawn = tokenizer.decode(completion.token_ids[completion.answer_offset :])
    for stop in stops:
        drawn = drawn.partition(stop)[0]
    return controls.of(control).answer_words(control, forced) + drawn
