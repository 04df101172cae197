"""Several micro-batches: the gradients of one, in the memory of one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from train_cases import ONE, RECIPE, TINY, WIDE, assert_same_gradients, examples, model, rows

from s1jax.models import lora
from s1jax.models.decoder import Decoder, count
from s1jax.parallel.mesh import MeshConfig, make_mesh
from s1jax.train import step as steps
from s1jax.train.loss import LossConfig
from s1jax.train.step import Batch, batch_sharding, gradients, initial_state, make_step, place_batch, state_shardings

ROWS = rows(examples(24, seed=5), 8, 64)
CHUNKED = dataclasses.replace(RECIPE, loss=LossConfig(chunk=16))
LORA = lora.LoraConfig(rank=4, alpha=8.0, targets=("q", "o", "down"))


def gradients_of(micro_batches, recipe=CHUNKED, sizes=ONE, *, explicit=False):
    """Loss and gradients of the rows in so many micro-batches; adapters are ones whose `up` is not zero."""
    devices = sizes.data * sizes.fsdp * sizes.context * sizes.tensor
    mesh = make_mesh(sizes, jax.devices()[:devices], explicit=explicit)
    state = initial_state(model(WIDE), recipe)
    trained = state.model if recipe.lora is None else jax.tree.map(lambda x: x + 0.1, state.model)
    where = state_shardings(state, mesh, recipe)

    def compute(trained, base, batch):
        with steps.placed(mesh):
            return gradients(trained, batch, recipe, mesh, base)

    out = (NamedSharding(mesh, P()), where.model)
    program = jax.jit(compute, out_shardings=out, compiler_options=parity.FAST)
    batch = place_batch(ROWS, micro_batches, batch_sharding(mesh))
    return jax.device_get(program(jax.device_put(trained, where.model), jax.device_put(state.base, where.base), batch))


@pytest.fixture(scope="module")
def whole():
    return gradients_of(1)


@pytest.mark.parametrize("remat", ["none", "dots", "attention", "full", "offload"])
def test_gradients_of_four_micro_batches_are_those_of_one(remat, whole):
    loss, grads = gradients_of(4, dataclasses.replace(CHUNKED, remat=remat))
    np.testing.assert_allclose(loss, whole[0], rtol=1e-5)
    assert_same_gradients(grads, whole[1])


@pytest.mark.parametrize(
    "sizes, explicit, layers_unrolled",
    [(MeshConfig(fsdp=2, context=2, tensor=2), False, 0), (MeshConfig(fsdp=2, context=2), True, 8)],
    ids=["Auto", "Explicit, unrolled"],
)
def test_and_on_meshes(sizes, explicit, layers_unrolled, whole, monkeypatch):
    monkeypatch.setattr(steps, "UNROLLED", layers_unrolled)
    loss, grads = gradients_of(4, CHUNKED, sizes, explicit=explicit)
    np.testing.assert_allclose(loss, whole[0], rtol=1e-5)
    assert_same_gradients(grads, whole[1])


def test_of_adapters_alone():
    recipe = dataclasses.replace(CHUNKED, lora=LORA, remat="full")
    (loss, grads), (expected, ones) = gradients_of(4, recipe), gradients_of(1, recipe)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert set(grads) == set(LORA.targets)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(ones), strict=True):
        assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs) > 0


def step_bytes(micro_batches, sizes):
    """Bytes of a device while a step of micro-batches of two short rows is made, and of the gradients it holds."""
    config = dataclasses.replace(TINY, D=128, K=4, G=2, H=16, F=512, L=12)
    recipe = dataclasses.replace(RECIPE, remat="full")
    mesh = make_mesh(sizes, jax.devices()[: sizes.fsdp * sizes.context])
    shapes = jax.eval_shape(lambda: initial_state(Decoder(config, jax.random.key(0)), recipe))
    where = state_shardings(shapes, mesh, recipe)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where)
    ints, floats = (
        jax.ShapeDtypeStruct((micro_batches, 2, 16), dtype, sharding=batch_sharding(mesh))
        for dtype in (jnp.int32, jnp.float32)
    )
    batch = Batch(ints, ints, ints, ints, floats)
    found = make_step(recipe, mesh, where).lower(state, batch).compile().memory_analysis()
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return held + found.temp_size_in_bytes, 4 * count(shapes.model) / mesh.size


@pytest.mark.parametrize("sizes", [MeshConfig(fsdp=1), MeshConfig(fsdp=2, context=2)], ids=["alone", "mesh"])
def test_four_micro_batches_take_the_memory_of_one(sizes):
    """A second tree of gradients would be a fifth of all."""
    (one, gradient), (four, _) = step_bytes(1, sizes), step_bytes(4, sizes)
    assert gradient > 0.2 * one
    assert four <= 1.03 * one
