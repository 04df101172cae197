"""What a plan of the train step says, and of which update."""

import dataclasses
from collections.abc import Mapping

from jax.sharding import Mesh

from s1jax.models.decoder import DecoderConfig
from s1jax.parallel.mesh import MeshConfig
from s1jax.plan.memory import Memory
from s1jax.train.config import TrainRun
from s1jax.train.step import Recipe


@dataclasses.dataclass(frozen=True)
class Update:
    """What an update of a run takes in.

    Attributes:
      steps: updates of the run.
      rows: rows of an update.
      micro_batches: into how many they are dealt.
      lengths: row lengths that are compiled, ascending.
      kept: for each of them how many positions reach the head, None for all.
      tokens: of the examples of an update, in the mean.
      positions: of its rows, in the mean; what no example fills is padding.
      flops: operations of a mean update for its examples alone, recomputation not counted.
      max_segments, max_segment_length: bounds on the examples of a row and on an example's length.
    """

    steps: int
    rows: int
    micro_batches: int
    lengths: tuple[int, ...]
    kept: tuple[int | None, ...]
    tokens: float
    positions: float
    flops: float
    max_segments: int
    max_segment_length: int

    @property
    def fill(self) -> float:
        """Share of the positions that holds tokens."""
        return self.tokens / self.positions


@dataclasses.dataclass(frozen=True)
class TrainPlan:
    """One way to run a recipe's step on a topology.

    Attributes:
      config: of the run, its mesh resolved.
      update: what it takes in.
      recipe: what is compiled.
      length: of the rows whose program takes most.
      memory: what that takes.
      bytes_by_length: bytes on a device for each row length that was compiled.
      floor_seconds: the operations of a mean update over the peak of all devices; None where that is not known (a CPU).
    """

    config: TrainRun
    model: DecoderConfig
    mesh: Mesh
    update: Update
    recipe: Recipe
    length: int
    memory: Memory
    bytes_by_length: Mapping[int, int]
    floor_seconds: float | None

    @property
    def shape(self) -> str:
        """The mesh in words."""
        return " x ".join(f"{axis}={n}" for axis, n in self.mesh.shape.items())


def kept_bytes(model: DecoderConfig, ids: int, remat: str) -> int:
    """Bytes in bfloat16 that the forward pass leaves for the backward pass, at least, for so many ids of one device."""
    heads, inner = model.K * model.G * model.H, model.K * model.H * (model.G + 2)
    of_layer = {
        "none": 3 * model.D + inner + heads + 3 * model.F,
        "dots": 3 * model.D + inner + 2 * model.F,
        "attention": model.D + heads,
        "full": model.D,
        "offload": 0,
    }
    return 2 * model.L * of_layer[remat] * ids


def least_bytes(config: TrainRun, model: DecoderConfig, parameters: int, mesh: MeshConfig, length: int) -> int:
    """What a device holds at least: parameters, moments, gradients (or the base of adapters), and what is kept."""
    ways = mesh.fsdp * mesh.context * mesh.tensor
    moments = 0 if config.offload_optimizer else sum(map(_size, (config.optimizer.mu, config.optimizer.nu)))
    each = 4 + 4 + moments if config.lora is None else _size(config.dtype)
    ids = config.micro_batch * length // mesh.context
    return each * parameters // ways + kept_bytes(model, ids, config.remat)


def _size(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else 4
