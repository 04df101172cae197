"""A model ready to complete rows: tokenizer, prompts as ids, engines made when the first row needs them.

Several settings (controls, samplings) of the same prompts go through the same engines as rows of one run.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax

from s1jax.checkpoint import hf
from s1jax.config import BadInput, free
from s1jax.control import CONTROLS
from s1jax.control.budget.admission import admit
from s1jax.control.config import ControlConfig, header_ids
from s1jax.engine import sampling
from s1jax.engine.config import EngineConfig
from s1jax.engine.engine import Engine
from s1jax.engine.protocol import MAX_IDS, ControlRow
from s1jax.engine.requests import Request
from s1jax.engine.sampling import SamplingConfig
from s1jax.methods.asks import Ask, Tree, plan
from s1jax.methods.method import MethodConfig
from s1jax.methods.parts import Share, share_of
from s1jax.methods.sweep import Sweep
from s1jax.parallel import hosts
from s1jax.parallel.mesh import MeshConfig, make_mesh
from s1jax.records import Completion
from s1jax.text.chat import system_turn
from s1jax.text.tokens import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelRun:
    """What every run of a model is asked.

    Attributes:
      model: a folder or a hub id.
      tokenizer: a folder or a hub id; None: the model's.
      chat_template: a Jinja file that replaces the tokenizer's template; a base model has none of its own.
      system: a system turn; None: what the template puts by itself.
      control, method, sampling: how long a row thinks, what is made of rows, how ids are drawn.
      seed: of all draws; a row's own are a hash of it, the prompt's id and the sample's number.
      dtype: of the computation.
      engine, mesh: how the device is used; `mesh.tensor` devices hold one copy of the model, `mesh.data` copies run.
      out: where everything is written.
    """

    model: str
    out: str = ""
    seed: int = 0
    tokenizer: str | None = None
    chat_template: str | None = None
    system: str | None = None
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    control: ControlConfig = ControlConfig()
    method: MethodConfig = MethodConfig()
    sampling: SamplingConfig = SamplingConfig()
    engine: EngineConfig = free(EngineConfig())
    mesh: MeshConfig = free(MeshConfig(fsdp=1))


class Session:
    """Tokenizer and engines of one run.

    Attributes:
      tokenizer: of the model.
      share: which of all engines are this process's.
    """

    def __init__(
        self, config: ModelRun, make_engines: Callable[..., Sequence[Any]] | None = None, share: Share | None = None
    ) -> None:
        """Join the other processes, read the tokenizer; the model is read when the first row is to be completed.

        Args:
          make_engines: (config, tokenizer, controls) -> engines; by default `build_engines`.
          share: of `make_engines`; by default what `config.mesh` says.

        Raises:
          BadInput: a mesh that cannot be, no tokenizer there, or no such template file.
        """
        hosts.start()
        self.share = share or share_of(config.mesh)
        template = None if config.chat_template is None else _read_template(config.chat_template)
        self.tokenizer = Tokenizer.load(config.tokenizer or config.model, chat_template=template)
        self._config = config
        self._make = make_engines or build_engines

    def prompt_ids(self, messages: Sequence[Mapping[str, str]], control: ControlConfig) -> tuple[int, ...]:
        """Ids of a chat up to where the model goes on: the next assistant turn, or the end of the last one (a prefix).

        The control's header is put at the end.
        """
        is_prefix = bool(messages) and messages[-1]["role"] == "assistant"
        ids = self.tokenizer.chat_ids(messages, generation_prompt=not is_prefix, continue_final=is_prefix)
        return (*ids, *header_ids(control, self.tokenizer))

    def question_ids(self, text: str, control: ControlConfig) -> tuple[int, ...]:
        """`prompt_ids` of one user turn, after the run's system turn if there is one."""
        return self.prompt_ids([*system_turn(self._config.system), {"role": "user", "content": text}], control)

    def check(self, asks: Iterable[Ask]) -> None:
        """Refuse what can be told without the model, so that a run's folder is not begun for it.

        Raises:
          BadInput: a row whose control or sampling cannot be, or that is longer than what was asked for.
        """
        longest = self._config.engine.max_length or MAX_IDS
        kinds = {(ask.control, ask.sampling, len(ask.prompt_ids)): ask for ask in asks}
        for ask in kinds.values():
            sampling.check(ask.sampling)
            admit_ask(ask, self.tokenizer, longest)

    def complete(
        self,
        asks: Iterable[Ask],
        on_done: Callable[[Ask, Completion], None],
        on_progress: Callable[[Request, list[int], list[bool]], None] | None = None,
    ) -> None:
        """Complete those rows that are this process's; each is handed over as it ends. With none no model is read.

        Raises:
          BadInput: a row that cannot run, before any work is done.
        """
        trees = plan(ask for ask in asks if self.share.engine_of(ask.id) is not None)
        if not trees:
            return
        controls = list(
            dict.fromkeys(ask.control for tree in trees for row in (tree.leader, *tree.forks) for ask in row)
        )
        engines = self._make(self._config, self.tokenizer, controls)
        desks = [Desk(engine, self.tokenizer, on_done) for engine in engines]
        rows = [(desks[self.share.engine_of(tree.leader[0].id) or 0], tree) for tree in trees]
        for (desk, _), requests in zip(rows, [desk.requests(tree) for desk, tree in rows], strict=True):
            desk.submit(requests)
        # All engines are asked in every round, so that each device has work while the reports of others are read.
        while any([desk.advance(on_progress) for desk in desks]):
            pass


class Desk:
    """Follows the rows of one engine: which asks a finished row serves."""

    def __init__(self, engine: Any, tokenizer: Tokenizer, on_done: Callable[[Ask, Completion], None]) -> None:
        self._engine, self._tokenizer, self._hand_over = engine, tokenizer, on_done
        self._sweep = Sweep(engine, self._on_done)
        self._asks: dict[tuple[Request, int], tuple[Ask, ...]] = {}

    def requests(self, tree: Tree) -> list[tuple[tuple[Ask, ...], Request]]:
        """What the leader and each fork would be by itself. Raises BadInput for one that cannot run."""
        return [(asks, self._request(asks[0])) for asks in (tree.leader, *tree.forks)]

    def submit(self, requests: Sequence[tuple[tuple[Ask, ...], Request]]) -> None:
        """Queue the leader with its forks; a fork whose budget is not below the leader's is a row of its own."""
        (leaders, leader), *forks = requests
        below = [(asks, fork) for asks, fork in forks if fork.control.budget < leader.control.budget]
        for asks, fork in below:
            self._asks[leader, fork.control.budget] = asks
        for asks, request in ((leaders, leader), *(fork for fork in forks if fork not in below)):
            self._asks[request, request.control.budget] = asks
            self._sweep.submit(request, [fork.control.budget for _, fork in below] if request is leader else [])

    def advance(self, on_progress: Any) -> bool:
        """One round of the engine; False when nothing is left to do."""
        return self._engine.advance(self._sweep.done, self._sweep.pause, on_progress)

    def _on_done(self, request: Request, budget: int, completion: Completion) -> None:
        for ask in self._asks.pop((request, budget)):
            self._hand_over(ask, completion)

    def _request(self, ask: Ask) -> Request:
        row = admit_ask(ask, self._tokenizer, self._engine.max_length)
        return Request(ask.id, ask.sample, ask.seed, ask.prompt_ids, row, ask.sampling)


def admit_ask(ask: Ask, tokenizer: Tokenizer, max_length: int) -> ControlRow:
    """The control of a row, in rows of `max_length` ids. Raises BadInput, with its id, for one that cannot run."""
    most = ask.sampling.max_new_tokens
    try:
        return admit(
            ask.control,
            tokenizer,
            prompt_length=len(ask.prompt_ids),
            max_length=max_length,
            max_new_tokens=max_length if most is None else most,
        )
    except BadInput as error:
        raise BadInput(f"prompt {ask.id!r}: {error}") from None


def build_engines(config: ModelRun, tokenizer: Tokenizer, controls: Sequence[ControlConfig]) -> list[Engine]:
    """This process's engines, of `mesh.tensor` devices each, every one with its own copy of the model."""
    devices, ways = jax.local_devices(), config.mesh.tensor
    engines = []
    for copy in range(share_of(config.mesh).count):
        own = devices[copy * ways : (copy + 1) * ways]
        mesh = make_mesh(MeshConfig(data=1, fsdp=1, context=1, tensor=ways), own)
        model: Any = hf.load(config.model, mesh=mesh, dtype=config.dtype, stacked=False)
        control = CONTROLS[controls[0].kind](tokenizer, model.config.V, controls)
        engines.append(Engine(model, tokenizer, config.engine, control, dtype=config.dtype, mesh=mesh, notify=say))
    return engines


def say(line: str) -> None:
    """A line for whoever watches."""
    print(line, file=sys.stderr, flush=True)


def _read_template(path: str) -> str:
    file = pathlib.Path(path)
    if not file.is_file():
        raise BadInput(f"chat_template={path} does not exist; give the path of a Jinja file")
    return file.read_text(encoding="utf-8")


def answer_text(completion: Completion, tokenizer: Tokenizer, control: ControlConfig, stops: Sequence[str] = ()) -> str:
    """The answer segment: what follows the end of thinking, without the headers; "" if thinking never ended.

    Words of a forced closing that belong to the answer ("Final Answer:") stay.
    """
    markers = control.markers
    forced = tokenizer.decode(completion.token_ids[completion.thinking_tokens : completion.answer_offset])
    for delimiter in markers.thinking_end:
        if delimiter in forced:
            header = markers.answer_start.rpartition(delimiter)[2].strip()
            forced = forced.rpartition(delimiter)[2].lstrip().removeprefix(header)
    drawn = tokenizer.decode(completion.token_ids[completion.answer_offset :])
    for stop in stops:
        drawn = drawn.partition(stop)[0]
    return forced + drawn
