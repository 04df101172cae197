"""The train step of a recipe, compiled for a topology: bytes by part, operations, time."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from s1jax.config import BadInput
from s1jax.models.decoder import Decoder, DecoderConfig
from s1jax.parallel.mesh import MeshConfig, make_mesh
from s1jax.plan import memory
from s1jax.plan.memory import Memory
from s1jax.plan.result import TrainPlan
from s1jax.plan.topology import Topology
from s1jax.train.config import TrainRun
from s1jax.train.flops import peak_flops, train_flops
from s1jax.train.setup import recipe_for, rows_at_once
from s1jax.train.step import Batch, TrainState, batch_sharding, initial_state, make_step, state_shardings


def steps_of(config: TrainRun, examples: int) -> int:
    """Updates of a run over so many examples."""
    return config.epochs * -(-examples // config.global_batch) if config.steps is None else config.steps


def plan_train(
    config: TrainRun,
    model: DecoderConfig,
    topology: Topology,
    *,
    rows: tuple[int, int] | None = None,
    examples: int = 1000,
) -> TrainPlan:
    """Compile the step and count.

    Args:
      rows: rows of a step and their length. None: as many as the mesh takes at once, of the block's length,
        rounded up as packing does.
      examples: of the data set; they set the length of the schedule alone.

    Raises:
      BadInput: a mesh that does not divide the model, the devices or the rows.
    """
    mesh = make_mesh(config.mesh, topology.devices)
    sizes = {axis: mesh.shape[axis] for axis in mesh.axis_names}
    config = dataclasses.replace(config, mesh=MeshConfig(**sizes))
    at_once = rows_at_once(config, mesh)
    multiple = math.lcm(config.packing.multiple, mesh.shape["context"])
    count, length = rows or (at_once, -(-config.data.block // multiple) * multiple)
    if count % at_once or count < 1 or length % mesh.shape["context"]:
        raise BadInput(
            f"rows=[{count},{length}]: the mesh takes {at_once} rows at once, cut into {mesh.shape['context']} parts; "
            f"give a multiple of {at_once} rows, of a length that is a multiple of {mesh.shape['context']}"
        )
    if length > model.max_position:
        raise BadInput(f"rows of {length} ids; the model is made for {model.max_position} positions; give shorter rows")
    steps = steps_of(config, examples)
    recipe = recipe_for(config, model, mesh, steps=steps, max_segments=config.global_batch, max_segment_length=length)
    shapes = jax.eval_shape(lambda: initial_state(Decoder(model, jax.random.key(0)), recipe))
    shardings = state_shardings(shapes, mesh, recipe)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    batch = _batch(mesh, count // at_once, at_once, length)
    lowered = memory.lower(make_step(recipe, mesh, shardings), topology, state, batch)
    compiled = memory.measure(lowered, topology, triton=False)
    flops = train_flops(model, [length] * count, config.lora)
    peak = peak_flops(topology.devices)
    return TrainPlan(
        config=config,
        model=model,
        mesh=mesh,
        rows=count,
        length=length,
        micro_batches=count // at_once,
        recipe=recipe,
        memory=Memory(_parts(state, batch, compiled.total), _host(state, compiled.host), topology.memory),
        flops=flops,
        floor_seconds=None if peak is None else flops / peak,
    )


def _batch(mesh: Mesh, micro_batches: int, rows: int, length: int) -> Batch:
    sharding = batch_sharding(mesh)
    names = [field.name for field in dataclasses.fields(Batch) if field.name != "kept"]  # the dearest: all are kept
    types = dict.fromkeys(names, jnp.int32) | {"weights": jnp.float32}
    shape = (micro_batches, rows, length)
    arrays: Any = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, dtype in types.items()}
    return Batch(**arrays)


def known_parts(state: TrainState, batch: Batch) -> dict[str, int]:
    """Bytes of what is there before the step begins, and of the gradients, which all exist before the first is used.

    Gradients are clipped by their common norm, so the optimizer cannot take one while the next is computed. Several
    micro-batches add to one tree.
    """
    parts: dict[str, Any] = {"parameters": state.model, "optimizer": state.optimizer, "gradients": state.model}
    if state.base is not None:
        parts = {"base": state.base, **parts}
    return {name: memory.shard_bytes(tree)[0] for name, tree in {**parts, "batch": batch}.items()}


def _parts(state: TrainState, batch: Batch, total: int) -> dict[str, int]:
    known = known_parts(state, batch)
    rest = total - sum(known.values()) + known["gradients"]
    known["gradients"] = min(known["gradients"], rest)  # of a small model some are used as soon as they are there
    return {**known, "activations": rest - known["gradients"]}


def _host(state: TrainState, compiled: int) -> int:
    return max(compiled, memory.shard_bytes(state)[1])
