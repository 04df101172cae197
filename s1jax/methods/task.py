"""What a method sees: one prompt, and a way to ask for completions of it, rows of it, and scores."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from s1jax.config import BadInput
from s1jax.engine.requests import Listener, Request
from s1jax.engine.sampling import SamplingConfig
from s1jax.engine.snapshots import Snapshot
from s1jax.records import Completion

Turn = Mapping[str, str]
Keep = Callable[[Completion], None]


@dataclasses.dataclass(frozen=True)
class Ask:
    """One row to complete.

    Attributes:
      setting: name of the setting that it belongs to.
      id, sample, seed: name the row; its draws depend on them.
      prompt_ids: the control's header included.
      control, sampling: of the row.
    """

    setting: str
    id: str
    sample: int
    seed: int
    prompt_ids: tuple[int, ...]
    control: Any
    sampling: SamplingConfig


@dataclasses.dataclass(frozen=True)
class Job:
    """One prompt under one setting.

    Attributes:
      setting: name of the setting.
      id, seed: name the prompt; draws depend on them, on the sample's number and on the position.
      messages: the chat up to where the model goes on.
      prompt_ids: its tokens, the control's header included.
      control, sampling, method: configs.
      n_samples: completions that the method will ask for.
    """

    setting: str
    id: str
    seed: int
    messages: tuple[Turn, ...]
    prompt_ids: tuple[int, ...]
    control: Any
    sampling: SamplingConfig
    method: Any
    n_samples: int

    @property
    def question(self) -> str:
        """The last turn of the user, "" without one."""
        return next((turn["content"] or "" for turn in reversed(self.messages) if turn["role"] == "user"), "")

    @property
    def keys(self) -> list[tuple[str, int]]:
        """(id, sample) of its completions."""
        return [(self.id, sample) for sample in range(self.n_samples)]


class Broker(Protocol):
    """What a task needs of whoever runs it; `s1jax.methods.router.Router` is it."""

    def prompt_ids(self, messages: Sequence[Turn], control: Any) -> tuple[int, ...]: ...
    def answer_text(self, completion: Completion, ask: Ask) -> str: ...
    def ask(self, ask: Ask, keep: Keep) -> Awaitable[Completion]: ...
    def request(self, ask: Ask) -> Request: ...
    def engine(self, id: str, /) -> Any: ...


class Task:
    """One prompt in the hands of a method.

    Attributes:
      job: what is asked.
      config: of the method.
    """

    def __init__(
        self,
        job: Job,
        broker: Broker,
        stored: Mapping[int, Completion],
        on_done: Callable[[Job, Ask, Completion], None],
    ) -> None:
        """`stored`: samples that a former start has finished; `on_done` gets each new one, once, as it ends."""
        self.job, self.config = job, job.method
        self._broker, self._stored, self._on_done = broker, stored, on_done
        self._asked: set[int] = set()

    async def complete(
        self,
        sample: int,
        *,
        messages: Sequence[Turn] | None = None,
        control: Any = None,
        sampling: SamplingConfig | None = None,
    ) -> Completion:
        """Completion number `sample` (each number once), of the job's prompt or of another chat.

        One that a former start has finished is given back as it was. An error of its row is raised.

        Raises:
          BadInput: it cannot run, or a stored one completes another prompt.
        """
        ask = self.ask(sample, messages=messages, control=control, sampling=sampling)
        if sample in self._stored:
            found = self._stored[sample]
            if found.prompt_ids != ask.prompt_ids:
                raise BadInput(
                    f"sample {sample} of {self.job.id!r} completes another prompt (of {len(found.prompt_ids)} tokens, "
                    f"now of {len(ask.prompt_ids)}); what it follows from has changed: give another out folder"
                )
            return found
        completion = await self._broker.ask(ask, lambda completion: self._on_done(self.job, ask, completion))
        if not completion.is_finished:  # nothing of it is written, so the run is not whole
            raise RowError(f"{ask.id!r} sample {ask.sample}: {completion.error or completion.finish_reason}")
        return completion

    def keep(self, ask: Ask, completion: Completion) -> Completion:
        """Hand a completion on to be written; for rows that the method has driven by itself (`start`).

        Raises:
          RowError: its row ended with an error.
        """
        if completion.finish_reason == "error":
            raise RowError(f"{ask.id!r} sample {ask.sample}: {completion.error}")
        if completion.is_finished:
            self._on_done(self.job, ask, completion)
        return completion

    def ask(
        self,
        sample: int,
        *,
        messages: Sequence[Turn] | None = None,
        control: Any = None,
        sampling: SamplingConfig | None = None,
    ) -> Ask:
        """What is asked for a sample. Raises BadInput for a number that is taken or beyond `Method.samples`."""
        if not 0 <= sample < self.job.n_samples or sample in self._asked:
            raise BadInput(
                f"method.kind={self.config.kind} asks for sample {sample} of {self.job.id!r}; it has said that there "
                f"are {self.job.n_samples}, each once"
            )
        self._asked.add(sample)
        control = self.job.control if control is None else control
        ids = self.job.prompt_ids
        if messages is not None or control != self.job.control:
            ids = self._broker.prompt_ids(self.job.messages if messages is None else messages, control)
        drawn = sampling or self.job.sampling
        return Ask(self.job.setting, self.job.id, sample, self.job.seed, ids, control, drawn)

    def answer_text(self, completion: Completion) -> str:
        """What a completion of the job's own control and sampling answers: the text behind its thinking."""
        job = self.job
        ask = Ask("", job.id, completion.sample, job.seed, completion.prompt_ids, job.control, job.sampling)
        return self._broker.answer_text(completion, ask)

    def start(self, ask: Ask) -> "LiveRow":
        """A row to drive by itself: it can be paused, forked, extended and cancelled. Raises BadInput."""
        return LiveRow.submit(self._broker.engine(ask.id), self._broker.request(ask))

    async def score(self, token_ids: Sequence[int]) -> np.ndarray:
        """Log-probabilities of given tokens, see `Engine.score`."""
        engine = self._broker.engine(self.job.id)
        return await asyncio.wrap_future(engine.post(lambda: engine.score(token_ids)))


class RowError(RuntimeError):
    """A row ended with an error."""


class LiveRow:
    """One row of an engine, driven from an event loop. Every call is made in the engine's thread.

    Attributes:
      request: what runs.
    """

    def __init__(self, engine: Any, request: Request) -> None:
        """Use `submit`, `fork` or `restore`."""
        self.request = request
        self._engine, self._ticket = engine, -1
        self._loop, self._events = asyncio.get_running_loop(), asyncio.Queue[Completion | None]()

    @classmethod
    def submit(cls, engine: Any, request: Request) -> "LiveRow":
        """Queue a request. Raises BadInput for one that cannot run."""
        row = cls(engine, request)
        row._ticket = engine.submit(request, row._listener)
        return row

    @property
    def _listener(self) -> Listener:
        def put(event: Completion | None) -> None:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

        return Listener(done=lambda _, completion: put(completion), paused=lambda _: put(None))

    async def event(self) -> Completion | None:
        """Wait for what comes next: None when the row pauses, its completion when it ends."""
        return await self._events.get()

    async def pause(self) -> None:
        """Ask the row to pause; `event` tells when it does."""
        await self._call(lambda: self._engine.pause(self._ticket))

    async def resume(self) -> None:
        """Let it run again."""
        await self._call(lambda: self._engine.resume(self._ticket))

    async def cancel(self) -> None:
        """End it; its completion says `cancelled`."""
        await self._call(lambda: self._engine.cancel(self._ticket))

    async def extend(self, token_ids: Sequence[int]) -> None:
        """Append tokens while it is paused."""
        await self._call(lambda: self._engine.extend(self._ticket, token_ids))

    async def ids(self) -> list[int]:
        """Its tokens so far, prompt included."""
        return await self._call(lambda: self._engine.ids(self._ticket))

    async def snapshot(self) -> Snapshot:
        """A copy of it while it is paused."""
        return await self._call(lambda: self._engine.snapshot(self._ticket))

    async def fork(self, request: Request) -> "LiveRow":
        """A copy of it, while it is paused, that runs under another request."""
        row = LiveRow(self._engine, request)
        [row._ticket] = await self._call(lambda: self._engine.fork(self._ticket, [request], row._listener))
        return row

    async def _call(self, function: Callable[[], Any]) -> Any:
        return await asyncio.wrap_future(self._engine.post(function))
