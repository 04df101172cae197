"""What every run of a model is asked."""

import dataclasses
from typing import Any, Literal

from s1jax import control as controls
from s1jax import methods
from s1jax.config import Seed, by_content, choice, free
from s1jax.control.budget.config import BudgetConfig
from s1jax.engine.config import EngineConfig
from s1jax.engine.sampling import SamplingConfig
from s1jax.methods.single import SingleConfig
from s1jax.parallel.hosts import HostsConfig
from s1jax.parallel.mesh import MeshConfig


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
      hosts: how long the processes of the run wait for each other.
      out: where everything is written.
    """

    model: str = by_content()
    out: str = ""
    seed: Seed = 0
    tokenizer: str | None = by_content(None)
    chat_template: str | None = by_content(None)
    system: str | None = None
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    control: Any = choice(BudgetConfig(), controls.configs)
    method: Any = choice(SingleConfig(), methods.configs)
    sampling: SamplingConfig = SamplingConfig()
    engine: EngineConfig = free(EngineConfig())
    mesh: MeshConfig = free(MeshConfig(fsdp=1))
    hosts: HostsConfig = free(HostsConfig())
