"""The verb `plan`: compile a recipe's step for devices that are not here, and say what fits.

out/config.yaml, run.json      what was planned
out/plan.json                  topology, bytes by part, verdict, operations, time
"""

import dataclasses
import functools
import importlib.metadata
import pathlib
from typing import Any, Literal

from jax.sharding import AbstractMesh

from s1jax.config import BadInput, Positive, PositiveNumber, free
from s1jax.engine.config import EngineConfig
from s1jax.models.decoder import DecoderConfig, abstract, count
from s1jax.parallel.mesh import AXES, MeshConfig
from s1jax.plan import advice, search, topology
from s1jax.plan.decode import plan_decode
from s1jax.plan.lengths import examples_of
from s1jax.plan.memory import BESIDE, USABLE, Fit, Memory
from s1jax.plan.result import TrainPlan, Update, least_bytes
from s1jax.plan.sizes import decoder_config
from s1jax.plan.topology import GIB, Topology
from s1jax.plan.train import plan_train
from s1jax.plan.update import update_of
from s1jax.records import write_json
from s1jax.runs import places
from s1jax.runs.folder import entered
from s1jax.train.config import TrainRun
from s1jax.train.data import DataConfig, Examples
from s1jax.train.setup import check_config, say

COMPILERS = ("jax", "jaxlib", "libtpu", "jax-cuda12-pjrt", "jax-cuda13-pjrt")


@dataclasses.dataclass(frozen=True)
class PlanRun(TrainRun):
    """A recipe of `train`, and the topology to plan it for. No weights are read.

    Attributes:
      data: as in the recipe; its rows are read where `lengths` says so.
      topology: the devices, as `h100:1x8` (hosts x GPUs), `v5p:2x4x4`, `v6e:8x8`, `cpu:8`.
      mesh: as in the recipe, or `search`: the fastest by estimate of the meshes, remats and offloads that fit.
      lengths: how long the examples are, which are packed as `train` packs them: `rows`, the recipe's own, read and
        tokenized; `s1k` or `s1k_deepseek`, as long as the traces of s1K (Gemini's, 4.7K tokens in the mean, or r1's);
        `auto`, own rows that are local and have a local tokenizer, else s1K's by `data.teacher`.
      examples: in the data set, where the lengths are those of s1K.
      mean_tokens: scales the lengths of s1K to this mean; None leaves them.
      rows: rows of a step and their length, all full, in place of what the lengths make.
      mfu: share of the devices' peak that the time of the run is given for.
      engine: plan the decode step of this engine in place of the train step; `mesh.tensor` devices hold it.
    """

    data: DataConfig = DataConfig(rows="")
    topology: str = free("")
    mesh: MeshConfig | Literal["search"] = free(MeshConfig())  # pyright: ignore[reportIncompatibleVariableOverride]
    lengths: str = free("auto")
    examples: Positive = free(1000)
    mean_tokens: Positive | None = free(None)
    rows: tuple[Positive, Positive] | None = free(None)
    mfu: PositiveNumber = free(0.4)
    engine: EngineConfig | None = free(None)


def run(config: PlanRun) -> pathlib.Path:
    """Plan and write `plan.json`. Returns the folder.

    Raises:
      BadInput: anything wrong with the config, an unknown topology, or a missing compiler.
    """
    if config.engine is not None:
        where = topology.find(config.topology)
        record, text = _decode(config, config.engine, where)
    else:
        plan, where = make_plan(config)
        record = describe(plan, where, config)
        text = lines(plan, where, record)
    device = f"{len(where.devices)} x {where.devices[0].device_kind}, none of them used"
    with entered(config, device=device) as out:
        write_json(out / "plan.json", record)
    print(text)
    return places.place(config.out)


def _decode(config: PlanRun, engine: EngineConfig, where: Topology) -> tuple[dict[str, Any], str]:
    tensor = 1 if isinstance(config.mesh, str) else config.mesh.tensor
    plan = plan_decode(engine, decoder_config(config.model), where, tensor=tensor, dtype=config.dtype)
    rows = sum(rows for rows, _ in plan.classes)
    record = {
        "format": "s1jax.plan/1",
        "step": "decode",
        **_where(where),
        "mesh": {"tensor": plan.tensor},
        "classes": [list(each) for each in plan.classes],
        "weights": plan.weights,
        "cache": plan.cache,
        "moments": None,
        **memory_record(plan.memory),
        "flops_per_step": plan.flops,
        "floor_seconds": plan.floor_seconds,
        "versions": _versions(),
    }
    shown = ", ".join(f"{count} x {length:,}" for count, length in plan.classes)
    floor = f"a step of all rows at full length takes at least {1e3 * plan.floor_seconds:.2f} ms"
    return record, "\n".join(
        [
            f"{where.name}: {len(where.devices)} x {record['device_kind']}, engines of tensor={plan.tensor}",
            f"decode: {rows} slots ({shown}), weights {plan.weights}, cache {plan.cache}",
            memory_line(plan.memory),
            f"{floor}: {rows / plan.floor_seconds:,.0f} tokens/s an engine at most",
        ]
    )


def make_plan(config: PlanRun) -> tuple[TrainPlan, Topology]:
    """What `config` asks for. Raises BadInput as `run`."""
    check_config(config)
    if not 0 < config.mfu <= 1 or config.examples < 1 or (config.mean_tokens is not None and config.mean_tokens < 1):
        raise BadInput(
            f"mfu={config.mfu}, examples={config.examples}, mean_tokens={config.mean_tokens}; give mfu above 0 and up "
            "to 1, the others at least 1"
        )
    where = topology.find(config.topology)
    model = decoder_config(config.model)
    examples, said = examples_of(config, config.lengths, config.examples, config.mean_tokens)
    if config.rows is None:
        say(f"lengths: {said}, of at most {config.data.block:,}")
    if config.mesh == "search":
        config = _search(config, model, where, examples)
    return plan_train(config, model, where, examples, rows=config.rows), where


def _search(config: PlanRun, model: DecoderConfig, where: Topology, examples: Examples) -> PlanRun:
    """The config with the mesh, remat and offload that a search takes."""

    @functools.cache
    def update(mesh: MeshConfig) -> Update:
        sizes = tuple(getattr(mesh, axis) for axis in AXES)
        return update_of(config, model, AbstractMesh(sizes, AXES), examples, config.rows)

    ordered = search.candidates(
        model, where, update, batch=config.global_batch, micro_batch=config.micro_batch, refused=say
    )
    parameters = count(abstract(model))

    def of(candidate: search.MeshCandidate) -> PlanRun:
        return dataclasses.replace(
            config, mesh=candidate.mesh, remat=candidate.remat, offload_optimizer=candidate.offload_optimizer
        )

    def compiled(candidate: search.MeshCandidate) -> tuple[Fit, int]:
        plan = plan_train(of(candidate), model, where, examples, rows=config.rows, longest_only=True)
        say(f"mesh {plan.shape}, remat {candidate.remat}: {memory_line(plan.memory)}")
        return plan.memory.verdict, plan.memory.total

    chosen, _ = search.search(
        ordered,
        lambda each: least_bytes(of(each), model, parameters, each.mesh, update(each.mesh).lengths[-1]),
        int(USABLE * where.memory) - BESIDE,
        compiled,
    )
    return of(chosen)


def describe(plan: TrainPlan, where: Topology, config: PlanRun) -> dict[str, Any]:
    """The content of `plan.json`."""
    recipe, update, floor = plan.recipe, plan.update, plan.floor_seconds
    return {
        "format": "s1jax.plan/1",
        "step": "train",
        **_where(where),
        "mesh": dict(plan.mesh.shape),
        "rows": [update.rows, plan.length],
        "lengths": list(update.lengths),
        "fill": update.fill,
        "tokens_per_step": update.tokens,
        "micro_batches": update.micro_batches,
        "remat": recipe.remat,
        "attention": recipe.attention,
        "offload_optimizer": recipe.offload_optimizer,
        "moments": {"mu": recipe.optimizer.mu, "nu": recipe.optimizer.nu},
        **memory_record(plan.memory),
        "bytes_by_length": {str(length): total for length, total in plan.bytes_by_length.items()},
        "flops_per_step": update.flops,
        "floor_seconds": floor,
        "run": {
            "steps": update.steps,
            "flops": update.steps * update.flops,
            "mfu": config.mfu,
            "minutes": None if floor is None else update.steps * floor / config.mfu / 60,
        },
        "versions": _versions(),
    }


def _where(where: Topology) -> dict[str, Any]:
    return {
        "topology": where.name,
        "devices": len(where.devices),
        "device_kind": where.devices[0].device_kind,
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
    recipe, update = plan.recipe, plan.update
    lengths = ", ".join(f"{length:,}" for length in update.lengths)
    text = [
        f"{where.name}: {len(where.devices)} x {record['device_kind']}, mesh {plan.shape}",
        f"step: {update.rows} rows of {lengths} tokens in {update.micro_batches} micro-batches, {update.fill:.1%} "
        f"full; remat {recipe.remat}, attention {recipe.attention}, moments {recipe.optimizer.mu} and "
        f"{recipe.optimizer.nu}" + (" in the host's memory" if recipe.offload_optimizer else ""),
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


def _versions() -> dict[str, str]:
    """Of the packages that decide what a program takes."""
    installed = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}
    return {name: installed[name] for name in COMPILERS if name in installed}
