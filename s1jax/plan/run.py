"""The verb `plan`: compile a recipe's step for devices that are not here, and say what fits.

out/config.yaml, run.json      what was planned
out/plan.json                  topology, bytes by part, verdict, operations, time
"""

import dataclasses
import importlib.metadata
import pathlib
from typing import Any, Literal

from s1jax.config import BadInput, free, open_run, write_json
from s1jax.mesh import MeshConfig
from s1jax.plan import advice, topology
from s1jax.plan.memory import BESIDE, USABLE, Memory
from s1jax.plan.result import TrainPlan
from s1jax.plan.sizes import decoder_config
from s1jax.plan.topology import GIB, Topology
from s1jax.plan.train import plan_train, steps_of
from s1jax.train.config import TrainRun
from s1jax.train.data import DataConfig
from s1jax.train.flops import train_flops
from s1jax.train.setup import check_config

COMPILERS = ("jax", "jaxlib", "libtpu", "jax-cuda12-pjrt", "jax-cuda13-pjrt")


@dataclasses.dataclass(frozen=True)
class PlanRun(TrainRun):
    """A recipe of `train`, and the topology to plan it for. No data, tokenizer or weights are read.

    Attributes:
      topology: `h100:1x8` (hosts x GPUs), `v5p:2x4x4`, `v6e:8x8`, `cpu:8`.
      mesh: as in the recipe, or `search`: the fastest by estimate of the meshes, remats and offloads that fit.
      rows: rows of a step and their length; None: what the mesh takes at once, of `data.block` ids.
      examples: of the data set.
      ids: of an example, for the time of the run; None: every row of every step is full.
      mfu: share of the devices' peak that the time of the run is given for.
    """

    data: DataConfig = DataConfig(rows="")
    topology: str = free("")
    mesh: MeshConfig | Literal["search"] = free(MeshConfig())  # pyright: ignore[reportIncompatibleVariableOverride]
    rows: tuple[int, int] | None = free(None)
    examples: int = free(1000)
    ids: int | None = free(None)
    mfu: float = free(0.4)


def run(config: PlanRun) -> pathlib.Path:
    """Plan and write `plan.json`. Returns the folder.

    Raises:
      BadInput: anything wrong with the config, an unknown topology, or a missing compiler.
    """
    plan, where = make_plan(config)
    out = open_run(config, device=f"{len(where.devices)} x {where.devices[0].device_kind}, none of them used")
    record = describe(plan, where, config)
    write_json(out / "plan.json", record)
    print(lines(plan, where, record))
    return out


def make_plan(config: PlanRun) -> tuple[TrainPlan, Topology]:
    """What `config` asks for. Raises BadInput as `run`."""
    check_config(config)
    if not 0 < config.mfu <= 1 or config.examples < 1 or (config.ids is not None and config.ids < 1):
        raise BadInput(
            f"mfu={config.mfu}, examples={config.examples}, ids={config.ids}; give mfu above 0 and up to 1, the others "
            "at least 1"
        )
    where = topology.find(config.topology)
    model = decoder_config(config.model)
    return plan_train(config, model, where, rows=config.rows, examples=config.examples), where


def describe(plan: TrainPlan, where: Topology, config: PlanRun) -> dict[str, Any]:
    """The content of `plan.json`."""
    steps = steps_of(config, config.examples)
    lengths = [plan.length] * plan.rows if config.ids is None else [config.ids] * config.global_batch
    flops = steps * train_flops(plan.model, lengths, config.lora)
    floor = None if plan.floor_seconds is None else flops * plan.floor_seconds / plan.flops
    recipe = plan.recipe
    return {
        "format": "s1jax.plan/1",
        "step": "train",
        "topology": where.name,
        "devices": len(where.devices),
        "device_kind": where.devices[0].device_kind,
        "mesh": dict(plan.mesh.shape),
        "rows": [plan.rows, plan.length],
        "micro_batches": plan.micro_batches,
        "remat": recipe.remat,
        "attention": recipe.attention,
        "offload_optimizer": recipe.offload_optimizer,
        "moments": {"mu": recipe.optimizer.mu, "nu": recipe.optimizer.nu},
        **memory_record(plan.memory),
        "flops_per_step": plan.flops,
        "floor_seconds": plan.floor_seconds,
        "run": {
            "steps": steps,
            "flops": flops,
            "mfu": config.mfu,
            "minutes": None if floor is None else floor / config.mfu / 60,
        },
        "versions": {name: version for name in COMPILERS if (version := _version(name))},
    }


def memory_record(memory: Memory) -> dict[str, Any]:
    """The fields of `plan.json` that say what a device holds."""
    return {
        "bytes_per_device": {**memory.parts, "total": memory.total},
        "host_bytes_per_device": memory.host,
        "memory": memory.limit,
        "fits": memory.verdict == "fits",
        "verdict": memory.verdict,
    }


def lines(plan: TrainPlan, where: Topology, record: dict[str, Any]) -> str:
    """What is shown."""
    recipe, shape = plan.recipe, " x ".join(f"{axis}={n}" for axis, n in plan.mesh.shape.items())
    text = [
        f"{where.name}: {len(where.devices)} x {record['device_kind']}, mesh {shape}",
        f"step: {plan.rows} rows of {plan.length:,} ids in {plan.micro_batches} micro-batches; remat {recipe.remat}, "
        f"attention {recipe.attention}, moments {recipe.optimizer.mu} and {recipe.optimizer.nu}"
        + (" in the host's memory" if recipe.offload_optimizer else ""),
        memory_line(plan.memory),
    ]
    if plan.memory.verdict != "fits":
        text.append(advice.line(plan, where))
    text.append(_time_line(record))
    return "\n".join(text)


def memory_line(memory: Memory) -> str:
    """Parts, total, and the verdict."""
    parts = " + ".join(f"{name} {size / GIB:.2f}" for name, size in memory.parts.items())
    host = f", {memory.host / GIB:.1f} on the host for each" if memory.host else ""
    need = f"with {BESIDE / GIB} for collectives and kernels of {USABLE:.0%} of {memory.limit / GIB:.1f}"
    return f"GiB per device: {parts} = {memory.total / GIB:.2f}{host}: {memory.verdict} ({need})"


def _time_line(record: dict[str, Any]) -> str:
    step, run = record["floor_seconds"], record["run"]
    if step is None:
        return f"{record['flops_per_step']:.3g} FLOPs a step; the peak of {record['device_kind']} is not known"
    return (
        f"{record['flops_per_step']:.3g} FLOPs a step, at least {step:.1f} s; the run of {run['steps']:,} steps, "
        f"{run['flops']:.3g} FLOPs: {run['minutes']:.1f} min at {run['mfu']:.0%} MFU"
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
