"""Float32 where bfloat16 would lose it: norms, softmax, logits, loss, gradients' sums, moments and scales.

The compute type is bfloat16. What a CPU computes anyway in float32 inside a product would hide a lost type in the
values, so the types are read off the program: every equation of it, those of inner programs included.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from program_types import WIDE, count, equations, is_narrow, narrow, products
from train_cases import RECIPE, TINY, examples, one_device, rows, unpacked

from s1jax.models import layers, lora
from s1jax.models.attention import Segments, segmented
from s1jax.models.decoder import Decoder, DecoderConfig, abstract, forward, logits, unstack
from s1jax.parallel import axes
from s1jax.train.loss import token_losses
from s1jax.train.optimizer import OptimizerConfig
from s1jax.train.packing import Packed
from s1jax.train.remat import REMAT
from s1jax.train.step import Recipe, batch_sharding, initial_state, loss_of, place_batch, train_step

# Every size is another one, so that a shape says what an array is.
CONFIG = DecoderConfig("qwen2", D=24, K=2, G=3, H=4, F=40, V=72, L=2, qkv_bias=True, qk_norm=True)
B, T = 2, 16


@pytest.fixture(scope="module")
def batch():
    group = examples(6, seed=1, longest=12)
    packed = rows(group, B, 2 * T)
    return jax.tree.map(lambda x: x[0], place_batch(packed, 1, batch_sharding(one_device())))


def run_forward(model, batch, attention="xla", remat=None):
    attend = segmented(attention, Segments(batch.segments, batch.positions, 8, 16))
    x_BTD, _ = forward(model, batch.tokens, batch.positions, attend, dtype=jnp.bfloat16, remat=REMAT[remat or "none"])
    return x_BTD, logits(model, x_BTD)


@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "unstacked"])
def test_forward(batch, stacked):
    model = abstract(CONFIG) if stacked else jax.eval_shape(unstack, abstract(CONFIG))
    program = jax.make_jaxpr(run_forward)(model, batch).jaxpr
    found = equations(program)
    assert narrow(found, (*WIDE, "reduce_sum", "integer_pow", "div")) == []
    layers_seen = 1 if stacked else CONFIG.L
    assert count(found)["rsqrt"] == 4 * layers_seen + 1, "two norms a layer, two of heads, and the last"
    assert count(found)["exp"] >= layers_seen and count(found)["cos"] == 1
    x_BTD, out = (variable.aval for variable in program.outvars)
    assert (x_BTD.dtype, out.dtype) == (jnp.bfloat16, jnp.float32), "hidden states are narrow, logits wide"
    scores = [e for e in products(found) if e.outvars[0].aval.shape[-2:] == (2 * T, 2 * T)]
    assert scores and all(e.outvars[0].aval.dtype == jnp.float32 for e in scores), "scores"
    heads = [e for e in products(found) if CONFIG.V in e.outvars[0].aval.shape]
    assert heads and all(e.outvars[0].aval.dtype == jnp.float32 for e in heads), "logits"
    assert any(map(is_narrow, heads[0].invars)), "made of narrow factors"
    others = [e for e in products(found) if e not in scores and e not in heads]
    assert others and all(is_narrow(e.outvars[0]) for e in others), "all else in the compute type"
    multiplied = [e for e in found if e.primitive.name == "mul" and e.outvars[0].aval.shape == (B, 2 * T, CONFIG.D)]
    in_norms = [e for e in multiplied if not any(map(is_narrow, e.invars))]
    assert len(in_norms) >= 2 * (2 * layers_seen + 1), "x * x, and x by the root, before the cast"


def test_a_norm_and_a_rotation_are_rounded_once():
    """Computed in float32 and rounded at the end: the values say so where the types of a program could not."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 3, 64)) * 30, jnp.bfloat16)
    weight = layers.param("D", (64,), None)  # type: ignore[arg-type]
    wide = np.asarray(x, np.float64)
    normed = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_array_equal(layers.rms_norm(x, weight, 1e-6), normed.astype(np.float32).astype(jnp.bfloat16))
    weight = nnx.Param(jnp.asarray(rng.standard_normal(64), jnp.float32), letters="D")
    narrow = normed.astype(np.float32).astype(jnp.bfloat16) * np.asarray(weight.get_value()).astype(jnp.bfloat16)
    np.testing.assert_array_equal(
        layers.rms_norm(x, weight, 1e-6), narrow, "the weight comes after, as in transformers"
    )
    cos, sin = layers.rotary_angles(
        jnp.arange(6).reshape(2, 3) * 1000, np.float32(1) / np.arange(1, 33, dtype=np.float32)
    )
    assert cos.dtype == sin.dtype == jnp.float32
    turned = layers.rotate(x[:, :, None], cos, sin)[:, :, 0]
    first, second = wide[..., :32], wide[..., 32:]
    c, s = np.asarray(cos, np.float64), np.asarray(sin, np.float64)
    expected = np.concatenate([first * c - second * s, second * c + first * s], -1)
    assert turned.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(turned, np.float64), expected, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("attend", [layers.attention])
def test_softmax(attend):
    q, kv = jnp.zeros((B, T, 2, 3, 4), jnp.bfloat16), jnp.zeros((B, T, 2, 4), jnp.bfloat16)
    found = equations(jax.make_jaxpr(attend)(q, kv, kv, jnp.ones((B, T, T), bool)).jaxpr)
    assert narrow(found, (*WIDE, "reduce_sum", "div", "sub")) == []
    assert count(found)["exp"] == 1 and count(found)["reduce_sum"] == 1
    assert [is_narrow(e.outvars[0]) for e in products(found)] == [False, True], "scores wide, the mean of values narrow"


def test_loss_of_a_token():
    wide = jnp.zeros((B, T, 72), jnp.float32)
    assert token_losses(wide, jnp.zeros((B, T), jnp.int32)).dtype == jnp.float32


RECIPES = {
    "plain": {},
    "chunked": {"loss": dataclasses.replace(RECIPE.loss, chunk=8)},
    "remat": {"remat": "full"},
    "narrow moments": {"optimizer": OptimizerConfig(mu="bfloat16", nu="bfloat16")},
    "adapters": {"lora": lora.LoraConfig(rank=2, alpha=4.0)},
}


def recipe_of(name: str) -> Recipe:
    return dataclasses.replace(RECIPE, dtype="bfloat16", **RECIPES[name])


@pytest.mark.parametrize("name", ["plain", "chunked", "remat"])
def test_loss(batch, name):
    program = jax.make_jaxpr(lambda model, rows: loss_of(model, rows, recipe_of(name)))(abstract(TINY), batch).jaxpr
    found = equations(program)
    assert program.outvars[0].aval.dtype == jnp.float32
    assert narrow(found, (*WIDE, "reduce_sum", "div")) == []
    over_ids = [e for e in found for v in e.outvars if getattr(v.aval, "shape", ())[-1:] == (TINY.V,)]
    floats = [e for e in over_ids if jnp.issubdtype(e.outvars[0].aval.dtype, jnp.floating)]
    assert floats and [str(e) for e in floats if is_narrow(e.outvars[0])] == [], "whatever has the size of logits"
    assert any(map(is_narrow, (v for e in found for v in e.outvars))), "the model itself computes in bfloat16"


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("name", RECIPES)
def test_train_step(name, micro_batches):
    recipe = recipe_of(name)
    group = examples(4, seed=2, longest=14)
    packed: Packed = unpacked(group, T)
    batch = place_batch(packed, micro_batches, batch_sharding(one_device()))
    state = jax.eval_shape(lambda: initial_state(Decoder(TINY, jax.random.key(0)), recipe))
    program, (after, metrics) = jax.make_jaxpr(
        lambda state, batch: train_step(state, batch, recipe), return_shape=True
    )(state, batch)
    found = equations(program.jaxpr)
    assert {x.dtype for x in jax.tree.leaves(metrics)} == {np.dtype("float32")}
    for tree in (state, after):
        assert {x.dtype for x in jax.tree.leaves(tree.model)} == {np.dtype("float32")}, "masters"
    if recipe.lora is not None:
        assert {x.dtype for x in jax.tree.leaves(after.base)} == {np.dtype(jnp.bfloat16)}, "what is not trained"
    held = {x.dtype for x in jax.tree.leaves(after.optimizer) if x.ndim}
    assert held == {np.dtype(recipe.optimizer.mu)}
    before = [x.dtype for x in jax.tree.leaves(state.optimizer)]
    assert [x.dtype for x in jax.tree.leaves(after.optimizer)] == before
    assert narrow(found, ("exp", "exp2", "log", "log1p", "rsqrt", "sqrt", "cos", "sin", "reduce_max")) == []
    shapes = {x.shape for x in jax.tree.leaves(state.model) if x.ndim > 1}
    if micro_batches > 1:
        sums = [e for e in found if e.primitive.name in ("add", "add_any") and e.outvars[0].aval.shape in shapes]
        kept = [e for e in found if e.primitive.name == "scan" and e.params["length"] == micro_batches]
        assert sums and len(kept) >= 1
        carried = kept[0].params["jaxpr"].out_avals[: kept[0].params["num_carry"]]
        assert {aval.dtype for aval in carried if aval.ndim > 1} == {np.dtype("float32")}, "gradients summed in float32"
    squares = [e for e in found if e.primitive.name in ("sqrt", "rsqrt", "integer_pow", "square")]
    assert squares and not any(map(is_narrow, (v for e in squares for v in e.invars)))


def test_scales_of_int8_weights_stay_wide():
    """Of logits the scale must be float32: rounded to bfloat16 it moves each by up to 0.4 %."""
    rng = np.random.default_rng(0)
    weight = axes.Quantized(
        jnp.asarray(rng.integers(-127, 128, (24, 72)), jnp.int8),
        jnp.asarray(1 + rng.random((1, 72)), jnp.float32) / 127,
    )
    x = jnp.asarray(rng.standard_normal((B, T, 24)), jnp.bfloat16)
    ours = axes.einsum("BTD,DV->BTV", x, weight, accumulate=jnp.float32)
    exact = np.asarray(x, np.float64) @ (np.asarray(weight.values, np.float64) * np.asarray(weight.scale, np.float64))
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-5)
    assert axes.einsum("BTD,DV->BTV", x, weight).dtype == jnp.bfloat16, "and elsewhere the compute type"
    table = axes.Quantized(weight.values.T, weight.scale.T)
    taken = axes.take(table, jnp.zeros((1, 1), int), "BTD")
    assert taken.dtype == jnp.float32
    np.testing.assert_allclose(taken[0, 0], np.asarray(table.values[0] * table.scale[0]), rtol=1e-6)
