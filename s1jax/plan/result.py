"""What a plan of the train step says."""

import dataclasses
import math

from jax.sharding import Mesh

from s1jax.models.decoder import DecoderConfig
from s1jax.plan.memory import Memory
from s1jax.train.config import TrainRun
from s1jax.train.step import Recipe


@dataclasses.dataclass(frozen=True)
class TrainPlan:
    """One way to run a recipe's step on a topology.

    Attributes:
      config: of the run, its mesh resolved.
      rows, length: of a step; every row is full.
      micro_batches: into how many the rows are dealt.
      recipe: what is compiled.
      memory: what that takes.
      flops: operations of a step whose rows are one example each, recomputation not counted.
      floor_seconds: the same over the peak of all devices; None where that is not known (a CPU).
    """

    config: TrainRun
    model: DecoderConfig
    mesh: Mesh
    rows: int
    length: int
    micro_batches: int
    recipe: Recipe
    memory: Memory
    flops: float
    floor_seconds: float | None


def saved_bytes(model: DecoderConfig, mesh: Mesh, rows: int, length: int) -> int:
    """Bytes of the layers' inputs in bfloat16 that full recomputation keeps, on one device."""
    ways = math.prod(mesh.shape[axis] for axis in ("data", "fsdp", "context"))
    return 2 * model.L * model.D * rows * length // ways
