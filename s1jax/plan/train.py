"""The train step of a recipe, compiled for a topology: bytes by part, operations, time."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from s1jax.models.decoder import Decoder, DecoderConfig
from s1jax.parallel.mesh import MeshConfig, make_mesh
from s1jax.plan import memory
from s1jax.plan.memory import Memory
from s1jax.plan.result import TrainPlan, Update
from s1jax.plan.topology import Topology
from s1jax.plan.update import update_of
from s1jax.train.config import TrainRun
from s1jax.train.data import Examples
from s1jax.train.flops import peak_flops
from s1jax.train.setup import recipe_for
from s1jax.train.step import Batch, TrainState, batch_sharding, initial_state, make_step, state_shardings


def plan_train(
    config: TrainRun,
    model: DecoderConfig,
    topology: Topology,
    examples: Examples,
    *,
    rows: tuple[int, int] | None = None,
    longest_only: bool = False,
) -> TrainPlan:
    """Compile the step for every row length of the run, side by side, and count.

    Args:
      examples: of the data set: an update's are packed as `train` packs them.
      rows: rows of a step and their length in place of what the examples make.
      longest_only: compile only the longest rows, as a search does.

    Raises:
      BadInput: a mesh that does not divide the model, the devices or the rows, or that the batch does not fill.
    """
    mesh = make_mesh(config.mesh, topology.devices)
    sizes = {axis: mesh.shape[axis] for axis in mesh.axis_names}
    config = dataclasses.replace(config, mesh=MeshConfig(**sizes))
    update = update_of(config, model, mesh, examples, rows)
    recipe = recipe_for(
        config,
        model,
        mesh,
        steps=update.steps,
        max_segments=update.max_segments,
        max_segment_length=update.max_segment_length,
    )
    shapes = jax.eval_shape(lambda: initial_state(Decoder(model, jax.random.key(0)), recipe))
    shardings = state_shardings(shapes, mesh, recipe)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    step = make_step(recipe, mesh, shardings)
    pairs = list(zip(update.lengths, update.kept, strict=True))[-1 if longest_only else 0 :]
    batches = [_batch(mesh, update, length, kept) for length, kept in pairs]
    lowered = [memory.lower(step, topology, state, batch) for batch in batches]
    compiled = memory.measure_all(lowered, topology, triton=False)
    most = max(range(len(pairs)), key=lambda i: compiled[i].total)
    peak = peak_flops(topology.devices)
    parts = _parts(state, batches[most], compiled[most].total)
    return TrainPlan(
        config=config,
        model=model,
        mesh=mesh,
        update=update,
        recipe=recipe,
        length=pairs[most][0],
        memory=Memory(parts, _host(state, compiled[most].host), topology.memory),
        bytes_by_length={length: each.total for (length, _), each in zip(pairs, compiled, strict=True)},
        floor_seconds=None if peak is None else update.flops / peak,
    )


def _batch(mesh: Mesh, update: Update, length: int, kept: int | None) -> Batch:
    sharding = batch_sharding(mesh)
    names = [field.name for field in dataclasses.fields(Batch)]
    types = dict.fromkeys(names, jnp.int32) | {"weights": jnp.float32}
    sizes: dict[str, int | None] = dict.fromkeys(names, length) | {"kept": kept}
    arrays: Any = {
        name: None
        if size is None
        else jax.ShapeDtypeStruct(
            (update.micro_batches, update.rows // update.micro_batches, size), types[name], sharding=sharding
        )
        for name, size in sizes.items()
    }
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
