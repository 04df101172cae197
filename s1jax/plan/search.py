"""Meshes, remats and offloads of a recipe in the order of their estimated time; the first that fits is taken.

The estimate orders candidates and is not a forecast. Seconds of an update, as it is packed for the mesh, are

    max(products, weights + moved residual) + heads + reductions + moved moments

Products: FLOPs with those of the padding and of what is recomputed, at `SUSTAINED` of the peak. Weights: gathered in
bfloat16 for the forward and the backward pass, gradients scattered in float32, every micro-batch, over the slowest link
that the group of `fsdp x context` crosses; they overlap with products, as do residuals that go to the host's memory and
back. Heads (exchanged for time over `context`) and reductions (over `tensor`) do not overlap.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator

from s1jax.config import BadInput
from s1jax.models.decoder import DecoderConfig
from s1jax.parallel.mesh import AXES, MeshConfig
from s1jax.plan.memory import Fit
from s1jax.plan.result import Update
from s1jax.plan.topology import Topology
from s1jax.train.flops import matmul_parameters, peak_flops

SUSTAINED = 0.6
COMPILED = 12  # candidates at most


@dataclasses.dataclass(frozen=True)
class MeshCandidate:
    """One way to run the step, and the estimated seconds of an update."""

    mesh: MeshConfig
    remat: str
    offload_optimizer: bool
    seconds: float


def recomputed(model: DecoderConfig, update: Update, remat: str) -> float:
    """Share of the update's FLOPs that a policy adds: the forward pass is a third of them."""
    attention = 1 - 6 * matmul_parameters(model) * update.tokens / update.flops
    return {"none": 0.0, "dots": attention / 3, "attention": (1 - attention) / 3}.get(remat, 1 / 3)


def seconds(
    model: DecoderConfig, topology: Topology, mesh: MeshConfig, update: Update, *, remat: str, offload_optimizer: bool
) -> float:
    """The estimate for one candidate."""
    chip, n = topology.chip, len(topology.devices)
    own = update.positions / (mesh.data * mesh.fsdp * mesh.context)  # positions of one device
    peak = peak_flops(topology.devices) or n * 1e11
    padding = 6 * matmul_parameters(model) * (update.positions - update.tokens)
    flops = (update.flops + padding) * (1 + recomputed(model, update, remat))
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
    busy = max(flops / (SUSTAINED * peak), update.micro_batches * moved + model.L * residual / chip.host)
    return busy + model.L * (heads + sums) / chip.ici_bandwidth + moments / chip.host


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
    update_of: Callable[[MeshConfig], Update],
    *,
    batch: int,
    micro_batch: int,
    refused: Callable[[str], None],
) -> list[MeshCandidate]:
    """All of them, the fastest first.

    Args:
      update_of: what an update takes in on a mesh, or BadInput where the mesh cannot make or fill the batch.
      refused: told once of each such reason.

    Raises:
      BadInput: no mesh is possible.
    """
    found, reasons = [], {}
    for mesh in meshes(model, topology, batch, micro_batch):
        try:
            update = update_of(mesh)
        except BadInput as error:
            reasons[str(error)] = None
            continue
        for remat, offload in itertools.product(("none", "dots", "attention", "full", "offload"), (False, True)):
            options = {"remat": remat, "offload_optimizer": offload}
            found.append(MeshCandidate(mesh, remat, offload, seconds(model, topology, mesh, update, **options)))
    for reason in reasons:
        refused(f"mesh=search leaves out: {reason}")
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
