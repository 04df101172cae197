"""The config of a training run: what a recipe under `configs/` may say."""

import dataclasses
from typing import Annotated, Literal

from annotated_types import Ge, Le

from s1jax.config import Count, Positive, Seed, by_content, free
from s1jax.models.decoder import DecoderConfig
from s1jax.models.lora import LoraConfig
from s1jax.parallel.hosts import HostsConfig
from s1jax.parallel.mesh import MeshConfig
from s1jax.train.data import DataConfig
from s1jax.train.log import LogConfig
from s1jax.train.loss import LossConfig
from s1jax.train.optimizer import OptimizerConfig
from s1jax.train.packing import PackingConfig


@dataclasses.dataclass(frozen=True)
class RandomModel:
    """A model with random weights.

    Attributes:
      init: its sizes; the weights are drawn from the run's seed.
    """

    init: DecoderConfig


@dataclasses.dataclass(frozen=True)
class SaveConfig:
    """Checkpoints.

    Attributes:
      every: steps between two; None for one at the end only.
      keep: how many of the newest stay. The best by validation loss stays too.
      export: which model goes to `hf/`: that of the last step, or the best by validation loss.
      dtype: type of the tensors in `hf/`.
      final_moments: the last step's checkpoint holds the optimizer's state too, which nothing needs but a comparison.
      full_disk: `stop` ends the run with all earlier checkpoints intact; `go_on` trains on without that checkpoint.
      wait_seconds: how long the processes of a run wait for each other's part of a checkpoint.
    """

    every: Positive | None = 100
    keep: Positive = 2
    export: Literal["last", "best"] = "last"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    final_moments: bool = True
    full_disk: Literal["stop", "go_on"] = "stop"
    wait_seconds: Positive = 3600


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainRun:
    """A fine-tuning run. The defaults are upstream's recipe (simplescaling/s1@77272c6 train/sft.sh).

    Attributes:
      model: folder or hub id of a checkpoint, or `{init: {family: qwen2, D: 64, ...}}` for random weights.
      data: which rows, and how they are rendered.
      tokenizer: folder or hub id; by default the model's.
      chat_template: file with a Jinja template in place of the tokenizer's.
      eval_rows: held-out data sets, rendered like the training rows, for the validation loss.
      epochs: how often every example is seen.
      steps: length of the run in updates, in place of `epochs`.
      global_batch: examples of an update.
      micro_batch: rows that a device takes at once; accumulation follows from it and the mesh.
      packing: how the examples of an update become rows of equal length.
      loss: how the loss is normed and computed.
      optimizer: AdamW with warm-up and cosine decay.
      lora: train adapters beside the unchanged model, which is then held in `dtype`.
      dtype: compute type; parameters and their gradients are float32.
      remat: what the backward pass recomputes, from the most memory to the least: a key of `s1jax.train.remat.REMAT`.
      offload_optimizer: keep the moments in the hosts' memory between updates.
      attention: `auto`, or a key of `s1jax.models.attention.BACKENDS`.
      seed: of the order of examples, and of random weights.
      mesh: devices along each mesh axis; one of them may be -1: what the others leave.
      save: checkpoints, and the model at the end.
      log: what a run says while it works.
      eval_every: steps between two validations; one is made before each save in any case.
      profile_steps: first step to trace and how many.
      hosts: how long the processes of the run wait for each other.
      out: folder of the run; by default `runs/` and the name of the recipe.
    """

    model: str | RandomModel = by_content()
    data: DataConfig
    tokenizer: str = by_content("")
    chat_template: str = by_content("")
    eval_rows: str | tuple[str, ...] = by_content(())
    epochs: Annotated[int, Ge(1), Le(10**5)] = 5
    steps: Annotated[int, Ge(1), Le(10**6)] | None = None
    global_batch: Annotated[int, Ge(1), Le(2**20)] = 16
    micro_batch: Positive = free(1)
    packing: PackingConfig = PackingConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoraConfig | None = None
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: str = free("full")
    offload_optimizer: bool = free(False)
    attention: str = free("auto")
    seed: Seed = 42
    mesh: MeshConfig = free(MeshConfig())
    save: SaveConfig = free(SaveConfig())
    log: LogConfig = free(LogConfig())
    eval_every: Positive | None = free(None)
    profile_steps: tuple[Count, Positive] | None = free(None)
    hosts: HostsConfig = free(HostsConfig())
    out: str = ""
