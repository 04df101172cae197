"""The engines of one process: each a copy of the model on its own devices."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, Literal

import jax

from s1jax import control as controls
from s1jax import methods
from s1jax.checkpoint import hf
from s1jax.config import choice, free
from s1jax.control.budget.config import BudgetConfig
from s1jax.engine.config import EngineConfig
from s1jax.engine.engine import Engine
from s1jax.engine.sampling import SamplingConfig
from s1jax.methods.parts import share_of
from s1jax.methods.single import SingleConfig
from s1jax.parallel.mesh import MeshConfig, make_mesh
from s1jax.text.tokens import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelRun:
    """What every run of a model is asked.

    Attributes:
      model: a folder or a hub id.
      tokenizer: a folder or a hub id; by default the model's.
      chat_template: a Jinja file that replaces the tokenizer's template; a base model has none of its own.
      system: a system turn; by default what the template puts by itself.
      control: how long a row thinks.
      method: what is made of rows.
      sampling: how tokens are drawn.
      seed: of all draws; a row's own are a hash of it, the prompt's id and the sample's number.
      dtype: of the computation.
      engine: how the device is used.
      mesh: `mesh.tensor` devices hold one copy of the model, `mesh.data` copies run.
      out: where everything is written.
    """

    model: str
    out: str = ""
    seed: int = 0
    tokenizer: str | None = None
    chat_template: str | None = None
    system: str | None = None
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    control: Any = choice(BudgetConfig(), controls.configs)
    method: Any = choice(SingleConfig(), methods.configs)
    sampling: SamplingConfig = SamplingConfig()
    engine: EngineConfig = free(EngineConfig())
    mesh: MeshConfig = free(MeshConfig(fsdp=1))


def build_engines(config: ModelRun, tokenizer: Tokenizer, asked: Sequence[Any], most_rows: int) -> list[Engine]:
    """This process's engines, of `mesh.tensor` devices each, every one with its own copy of the model.

    Args:
      asked: configs of all controls.
      most_rows: rows that are asked for in all, on every engine.
    """
    devices, ways = jax.local_devices(), config.mesh.tensor
    engines = []
    for copy in range(share_of(config.mesh).count):
        own = devices[copy * ways : (copy + 1) * ways]
        mesh = make_mesh(MeshConfig(data=1, fsdp=1, context=1, tensor=ways), own)
        model: Any = hf.load(config.model, mesh=mesh, dtype=config.dtype, stacked=False)
        automata = controls.automata(tokenizer, model.config.V, asked)
        engines.append(
            Engine(
                model,
                tokenizer,
                config.engine,
                automata,
                dtype=config.dtype,
                mesh=mesh,
                notify=say,
                most_rows=most_rows,
            )
        )
    return engines


def say(line: str) -> None:
    """A line for whoever watches."""
    print(line, file=sys.stderr, flush=True)
