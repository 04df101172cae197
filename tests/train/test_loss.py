"""The loss: against log-probabilities in NumPy, in chunks and whole, by value, gradient and compiled memory."""

import contextlib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_cases import TINY, assert_same_gradients, model

from s1jax.models.decoder import letters
from s1jax.parallel import axes
from s1jax.parallel.mesh import ACTIVATION, MeshConfig, make_mesh, param_sharding
from s1jax.train.loss import weighted_loss

B, T = 2, 40


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    x_BTD = jnp.asarray(rng.standard_normal((B, T, TINY.D)), jnp.float32)
    targets_BT = jnp.asarray(rng.integers(0, TINY.V, (B, T)), jnp.int32)
    weights_BT = jnp.asarray(rng.random((B, T)) * (rng.random((B, T)) < 0.7), jnp.float32)
    return model(), x_BTD, targets_BT, weights_BT


def value_and_grads(decoder, x_BTD, targets_BT, weights_BT, **options):
    def loss(decoder, x_BTD):
        return weighted_loss(decoder, x_BTD, targets_BT, weights_BT, **options)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(decoder, x_BTD)


@pytest.fixture(scope="module")
def whole(inputs):
    return value_and_grads(*inputs)


def test_the_loss_is_the_weighted_log_probability(inputs, whole):
    decoder, x, targets, weights = (np.asarray(part) if hasattr(part, "shape") else part for part in inputs)
    logits = x.astype(np.float64) @ np.asarray(decoder.embed.get_value(), np.float64).T
    log_z = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    chosen = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(whole[0], (weights * (log_z - chosen)).sum(), rtol=1e-6)


SPLITS = [MeshConfig(fsdp=2, context=2, tensor=2), MeshConfig(data=2, fsdp=1, context=4), MeshConfig(fsdp=2, context=1)]


@pytest.mark.parametrize(
    ("chunk", "split"), [(8, None), (7, None), (1, None), (0, SPLITS[0]), *((8, s) for s in SPLITS)]
)
def test_neither_chunks_nor_meshes_change_value_or_gradients(inputs, whole, chunk, split):
    mesh = None if split is None else make_mesh(split, jax.devices()[: 2 if split == SPLITS[2] else 8])
    with contextlib.nullcontext() if mesh is None else axes.placed(mesh, ACTIVATION):
        loss, (d_model, d_x) = value_and_grads(*inputs, chunk=chunk, mesh=mesh)
    np.testing.assert_allclose(loss, whole[0], rtol=1e-6)
    assert_same_gradients(d_model, whole[1][0], 1e-6)
    np.testing.assert_allclose(d_x, whole[1][1], rtol=1e-5, atol=1e-7)


def test_positions_without_weight_do_not_count(inputs):
    decoder, x, targets, weights = inputs
    garbage = jnp.where(weights[..., None] > 0, x, 1e4)
    ours = value_and_grads(decoder, garbage, jnp.where(weights > 0, targets, 0), weights)
    clean = value_and_grads(decoder, jnp.where(weights[..., None] > 0, x, 0), targets, weights)
    np.testing.assert_allclose(ours[0], clean[0], rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(ours[1][1])[np.asarray(weights) == 0], 0)


def test_logits_of_a_whole_row_never_exist(inputs):
    decoder, x, targets, weights = inputs
    grad = jax.grad(functools.partial(weighted_loss, chunk=8), argnums=(0, 1))
    text = jax.jit(grad).lower(decoder, x, targets, weights).compile().as_text()
    sizes = [np.prod([int(n) for n in shape.split(",")]) for shape in re.findall(r"f32\[([\d,]+)\]", text)]
    assert max(sizes) < B * T * TINY.V
    assert any(size == B * 8 * TINY.V for size in sizes)


def test_on_a_mesh_neither_head_nor_its_gradient_is_whole_anywhere(inputs):
    mesh = make_mesh(MeshConfig(fsdp=4, context=2))
    decoder, *rest = inputs
    where = jax.tree.map(lambda text, x: param_sharding(text, x.shape, mesh), letters(decoder), decoder)
    grad = jax.grad(functools.partial(weighted_loss, chunk=8, mesh=mesh), argnums=(0, 1))
    with axes.placed(mesh, ACTIVATION):
        text = (
            jax.jit(grad, out_shardings=(where, None)).lower(jax.device_put(decoder, where), *rest).compile().as_text()
        )
    shapes = {shape for shape in re.findall(r"f32\[([\d,]+)\]", text)}
    assert f"{TINY.V},{TINY.D}" not in shapes and f"{TINY.D},{TINY.V}" not in shapes
    assert f"{TINY.V // 8},{TINY.D}" in shapes or f"{TINY.D},{TINY.V // 8}" in shapes
