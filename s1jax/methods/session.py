"""A model ready to complete prompts: tokenizer, prompts as tokens, engines made when the first row needs them.

Several settings (controls, samplings, methods) of the same prompts go through the same engines as rows of one run.
Engines live as long as their session.
"""

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from s1jax import control as controls
from s1jax.engine import sampling
from s1jax.engine.protocol import MAX_TOKENS
from s1jax.methods import METHODS
from s1jax.methods.config import ModelRun
from s1jax.methods.parts import Share, share_of
from s1jax.methods.router import OnProgress, Router, request_of
from s1jax.methods.task import Ask, Job, RowError, Task, Turn
from s1jax.parallel import hosts
from s1jax.records import Completion
from s1jax.text.chat import read_template, system_turn
from s1jax.text.tokens import Tokenizer

KeepCompletion = Callable[[Job, Ask, Completion], None]
StoredSamples = Mapping[tuple[str, str], Mapping[int, Completion]]


class Session:
    """Tokenizer and engines of one run.

    Attributes:
      tokenizer: of the model.
      share: which of all engines are this process's.
    """

    def __init__(
        self,
        config: ModelRun,
        make_engines: Callable[..., Sequence[Any]],
        share: Share | None = None,
        tokenizer: Tokenizer | None = None,
        keeps_running: bool = False,
    ) -> None:
        """Join the other processes, read the tokenizer; the model is read when the first row is to be completed.

        Args:
          make_engines: `s1jax.methods.engines.build_engines`, or what stands in for it.
          share: of `make_engines`; by default what `config.mesh` says.
          tokenizer: by default the one that `config` names.
          keeps_running: engines are somebody else's, and go on when a run has ended.

        Raises:
          BadInput: a mesh that cannot be, no tokenizer there, or no such template file.
        """
        hosts.start(config.hosts)
        self.share = share or share_of(config.mesh)
        template = None if config.chat_template is None else read_template(config.chat_template)
        source, key = (config.tokenizer, "tokenizer") if config.tokenizer else (config.model, "model")
        self.tokenizer = tokenizer or Tokenizer.load(source, chat_template=template, key=key)
        self._config = config
        self._make, self._keeps_running = make_engines, keeps_running
        self._engines: list[Any] = []
        self._controls: dict[Any, None] = {}

    def prompt_ids(self, messages: Sequence[Turn], control: Any) -> tuple[int, ...]:
        """Tokens of a chat up to where the model goes on: the next assistant turn, or the end of a last one (a prefix).

        The control's header is put at the end.
        """
        is_prefix = bool(messages) and messages[-1]["role"] == "assistant"
        ids = self.tokenizer.chat_ids(messages, generation_prompt=not is_prefix, continue_final=is_prefix)
        return (*ids, *controls.of(control).header(control, self.tokenizer))

    def job(
        self,
        id: str,
        messages: Sequence[Turn],
        control: Any,
        sampling: sampling.SamplingConfig,
        method: Any,
        *,
        setting: str = "",
        seed: int | None = None,
    ) -> Job:
        """One prompt under one setting. Raises BadInput for settings that contradict each other."""
        n = METHODS[method.kind].samples(method, sampling)
        ids = self.prompt_ids(messages, control)
        seed = self._config.seed if seed is None else seed
        return Job(setting, id, seed, tuple(messages), ids, control, sampling, method, n)

    def question(self, text: str) -> tuple[Turn, ...]:
        """One user turn, after the run's system turn if there is one."""
        return (*system_turn(self._config.system), {"role": "user", "content": text})

    def check(self, jobs: Iterable[Job]) -> None:
        """Refuse what can be told without the model, so that a run's folder is not begun for it.

        Raises:
          BadInput: a row whose control or sampling cannot be, or that is longer than what was asked for.
        """
        self._check(jobs, self._config.engine.max_length or MAX_TOKENS)

    def _check(self, jobs: Iterable[Job], longest: int) -> None:
        kinds = {(job.control, job.sampling, len(job.prompt_ids)): job for job in jobs}
        for job in kinds.values():
            sampling.check(job.sampling)
            request_of(Ask("", job.id, 0, job.seed, job.prompt_ids, job.control, job.sampling), self.tokenizer, longest)

    def is_mine(self, id: str) -> bool:
        """The rows of a prompt are completed by this process."""
        return self.share.engine_of(id) is not None

    def run(
        self,
        jobs: Sequence[Job],
        on_done: KeepCompletion,
        *,
        stored: StoredSamples | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Have the methods of those jobs run that are this process's; each completion is handed over as it ends.

        Args:
          jobs: the whole list of the run: it decides how many rows an engine has.
          on_done: called in this thread.
          stored: by (setting, id), the samples that a former start has finished. A job with all of them is passed over,
            and where no other is left no model is read.

        Raises:
          BadInput: a row that cannot run.
          RowError: rows ended with errors; all others are finished.
        """
        found = stored or {}
        left = [
            job for job in jobs if self.is_mine(job.id) and len(found.get((job.setting, job.id), ())) < job.n_samples
        ]
        if not left:
            return
        self._prepare(jobs)
        self._check(left, min(engine.max_length for engine in self._engines))
        for engine in self._engines:
            engine.start()
        try:
            _run(self._drive(left, found, on_done, on_progress))
        except BaseException:
            for engine in [] if self._keeps_running else self._engines:
                if engine.failure is None:
                    engine.cancel_all()  # rows that nobody waits for any more would be in the way of the next run
            raise
        finally:
            for engine in [] if self._keeps_running else self._engines:
                engine.stop()

    def _prepare(self, jobs: Sequence[Job]) -> None:
        """Engines for all controls that these jobs name; the model is read once."""
        asked = dict.fromkeys([*self._controls, *(job.control for job in jobs)])
        if not self._engines:
            self._engines = list(
                self._make(self._config, self.tokenizer, list(asked), sum(job.n_samples for job in jobs))
            )
        elif len(asked) > len(self._controls):
            for engine in self._engines:
                engine.set_controls(controls.automata(self.tokenizer, engine.vocab_size, list(asked)))
        self._controls = asked

    async def _drive(
        self, jobs: Sequence[Job], stored: StoredSamples, on_done: KeepCompletion, on_progress: OnProgress | None
    ) -> None:
        router = Router(self._engine_of, self.tokenizer, self.prompt_ids, on_progress)

        errors: list[RowError] = []

        async def drive(job: Job) -> None:
            task = Task(job, router, stored.get((job.setting, job.id), {}), on_done)
            try:
                await METHODS[job.method.kind].run(task)
            except RowError as error:
                errors.append(error)

        tasks = [asyncio.ensure_future(drive(job)) for job in jobs]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for engine in self._engines:
            if engine.failure is not None:
                raise engine.failure
        if errors:
            raise RowError(f"{len(errors)} rows ended with errors, the others are finished; the first: {errors[0]}")

    def _engine_of(self, id: str) -> Any:
        index = self.share.engine_of(id)
        assert index is not None, f"the rows of {id!r} are another process's"
        return self._engines[index]


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run it in an event loop of its own; where this thread has one already (a notebook), in another thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        executor.submit(asyncio.run, work).result()
