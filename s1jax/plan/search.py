"""Meshes, remats and offloads of a recipe in the order of their estimated time; the first that fits is taken.

The estimate orders candidates and is not a forecast. Seconds per useful id of a step are

    max(products, weights + moved residual) + heads + reductions + moved moments

over the share of each row that holds examples. Products: FLOPs with what is recomputed, at `SUSTAINED` of the peak.
Weights: gathered in bfloat16 for the forward and the backward pass, gradients scattered in float32, every micro-batch,
over the slowest link that the group of `fsdp x context` crosses; they overlap with products, as do residuals that go to
the host's memory and back. Heads (exchanged for time over `context`) and reductions (over `tensor`) do not overlap.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from statistics import NormalDist

from s1jax.config import BadInput
from s1jax.models.decoder import DecoderConfig
from s1jax.parallel.mesh import AXES, MeshConfig
from s1jax.plan.memory import Fit
from s1jax.plan.topology import Topology
from s1jax.train.flops import matmul_parameters, peak_flops, train_flops
from s1jax.train.packing import longest_first

SUSTAINED = 0.6
SPREAD = 0.35  # of the logarithm of an example's length: traces of s1K
COMPILED = 12  # candidates at most


@dataclasses.dataclass(frozen=True)
class MeshCandidate:
    """One way to run the step, and the estimated seconds per useful id."""

    mesh: MeshConfig
    remat: str
    offload_optimizer: bool
    seconds: float


def recomputed(model: DecoderConfig, length: int, remat: str) -> float:
    """Share of the step's FLOPs that a policy adds: the forward pass is a third of them."""
    whole = train_flops(model, [length])
    attention = 1 - 6 * matmul_parameters(model) * length / whole
    return {"none": 0.0, "dots": attention / 3, "attention": (1 - attention) / 3}.get(remat, 1 / 3)


def filled(batch: int, rows: int) -> float:
    """Share of equal rows that a batch of examples fills, packed as in `train`, for lengths of the usual spread."""
    normal = NormalDist(sigma=SPREAD)
    lengths = [round(1e4 * math.exp(normal.inv_cdf((i + 0.5) / batch))) for i in range(batch)]
    fullest = max(sum(lengths[i] for i in row) for row in longest_first(lengths, rows))
    return sum(lengths) / (rows * fullest)


def seconds(
    model: DecoderConfig,
    topology: Topology,
    mesh: MeshConfig,
    *,
    length: int,
    batch: int,
    micro_batch: int,
    remat: str,
    offload_optimizer: bool,
) -> float:
    """The estimate for one candidate whose step is one micro-batch of rows of `length`."""
    chip, n = topology.chip, len(topology.devices)
    rows = mesh.data * mesh.fsdp * micro_batch
    ids = rows * length
    own = micro_batch * length / mesh.context  # ids of one device
    peak = peak_flops(topology.devices) or n * 1e11
    flops = train_flops(model, [length] * rows) * (1 + recomputed(model, length, remat))
    weights = matmul_parameters(model) + model.V * model.D
    cut, per_host = mesh.fsdp * mesh.context, n // topology.hosts
    link = chip.ici_bandwidth if cut * mesh.tensor <= per_host else chip.dcn_bandwidth * min(per_host, cut)
    moved = (2 + 2 + 4) * weights / mesh.tensor * (1 - 1 / cut) / link
    if mesh.data > 1:
        moved += 8 * weights / (cut * mesh.tensor) / (chip.dcn_bandwidth if topology.hosts > 1 else chip.ici_bandwidth)
    heads = 4 * 2 * own * model.H * model.K * (2 * model.G + 2) / mesh.tensor * (1 - 1 / mesh.context)
    sums = 6 * 2 * own * 2 * model.D * (1 - 1 / mesh.tensor)
    residual = 4 * own * model.D if remat == "offload" else 0.0
    moments = 16 * weights / (cut * mesh.tensor) if offload_optimizer else 0.0
    busy = max(flops / (SUSTAINED * peak), moved + model.L * residual / chip.host)
    return (busy + model.L * (heads + sums) / chip.ici_bandwidth + moments / chip.host) / (ids * filled(batch, rows))


def meshes(model: DecoderConfig, topology: Topology, batch: int, micro_batch: int) -> Iterator[MeshConfig]:
    """All meshes of the topology that kernels, heads and the batch allow; `tensor` and `context` stay within a host."""
    n, per_host = len(topology.devices), len(topology.devices) // topology.hosts
    sizes = [d for d in range(1, n + 1) if n % d == 0]
    for data, fsdp, context in itertools.product(sizes, repeat=3):
        if n % (data * fsdp * context):
            continue
        tensor = n // (data * fsdp * context)
        divides = model.K % (tensor * context) == 0 and model.D % (fsdp * context) == 0 and model.F % (n // data) == 0
        if divides and tensor * context <= per_host and data * fsdp * micro_batch <= batch:
            yield MeshConfig(**dict(zip(AXES, (data, fsdp, context, tensor), strict=True)))


def candidates(
    model: DecoderConfig,
    topology: Topology,
    *,
    length: int,
    batch: int,
    micro_batch: int,
    rows: tuple[int, int] | None = None,
) -> list[MeshCandidate]:
    """All of them that can take `rows`, the fastest first. Raises BadInput where no mesh is possible."""
    found = []
    for mesh in meshes(model, topology, batch, micro_batch):
        if rows is not None and (rows[0] % (mesh.data * mesh.fsdp * micro_batch) or length % mesh.context):
            continue
        for remat, offload in itertools.product(("none", "dots", "attention", "full", "offload"), (False, True)):
            options = {"remat": remat, "offload_optimizer": offload}
            estimate = seconds(model, topology, mesh, length=length, batch=batch, micro_batch=micro_batch, **options)
            found.append(MeshCandidate(mesh, remat, offload, estimate))
    if not found:
        raise BadInput(
            f"mesh=search: no mesh of {len(topology.devices)} devices has rows for a batch of {batch} and divides the "
            f"{model.K} kv heads; use a larger global_batch or a smaller topology"
        )
    return sorted(found, key=lambda candidate: candidate.seconds)


def search(
    ordered: list[MeshCandidate],
    least: Callable[[MeshCandidate], int],
    usable: int,
    compile: Callable[[MeshCandidate], tuple[Fit, int]],
) -> tuple[MeshCandidate, int]:
    """The first candidate that fits, else the smallest that was compiled; and how many were compiled.

    Args:
      least: a lower bound of a candidate's bytes, by arithmetic: what is above `usable` is not compiled.
      compile: verdict and bytes of a candidate.
    """
    possible = [candidate for candidate in ordered if least(candidate) <= usable]
    if not possible:
        return min(ordered, key=least), 0
    tried: list[tuple[int, MeshCandidate]] = []
    for candidate in possible[:COMPILED]:
        verdict, total = compile(candidate)
        if verdict == "fits":
            return candidate, len(tried) + 1
        tried.append((total, candidate))
    return min(tried, key=lambda pair: pair[0])[1], len(tried)
