"""Attention of training: every backend against plain XLA, packed against unpacked, and what refuses to run."""

import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_cases import RECIPE, TINY, assert_same_gradients, examples, model, one_device, rows, unpacked

from s1jax.config import BadInput
from s1jax.models import attention, attention_kernels
from s1jax.models.attention import BACKENDS, Segments, choose, segmented
from s1jax.models.decoder import forward, logits
from s1jax.models.time import cut_time, join_time
from s1jax.parallel.mesh import MeshConfig, make_mesh
from s1jax.train.step import batch_sharding, gradients, place_batch

B, T, K, G, H = 2, 256, 2, 2, 8
MOST, LONGEST = 5, 120
LENGTHS = [[120, 30, 7, 1, 60], [5, 100]]  # padding behind both rows


@pytest.fixture(scope="module")
def packed():
    segments, positions = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
    for row, lengths in enumerate(LENGTHS):
        ends = np.cumsum(lengths)
        for segment, (end, length) in enumerate(zip(ends, lengths, strict=True), 1):
            segments[row, end - length : end] = segment
            positions[row, end - length : end] = np.arange(length)
    return Segments(jnp.asarray(segments), jnp.asarray(positions), MOST, LONGEST)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    shapes = [(B, T, K, G, H), (B, T, K, H), (B, T, K, H), (B, T, K, G, H)]
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def outputs_and_gradients(kernel, inputs, packed):
    """Output at real positions and the gradients of a weighting that reads those alone."""
    *qkv, weight = inputs
    is_real = (packed.segments_BT > 0)[..., None, None, None]

    def loss(q, k, v):
        out = kernel(q, k, v, packed)
        return jnp.sum(jnp.where(is_real, out * weight, 0)), jnp.where(is_real, out, 0)

    (_, out), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*qkv)
    return out, *grads


def xla(q, k, v, packed):
    return segmented("xla", packed)(q, k, v, None)[0]


@pytest.fixture(scope="module")
def reference(inputs, packed):
    return outputs_and_gradients(xla, inputs, packed)


def test_xla_is_softmax_over_the_segments_past(inputs, packed, reference):
    q, k, v, _ = (np.asarray(x, np.float64) for x in inputs)
    for row, lengths in enumerate(LENGTHS):
        for end, length in zip(np.cumsum(lengths), lengths, strict=True):
            at = slice(end - length, end)
            for head in np.ndindex(K, G):
                scores = q[row, at, *head] @ k[row, at, head[0]].T / np.sqrt(H)
                weights = np.exp(scores) * np.tri(length)
                expected = weights / weights.sum(1, keepdims=True) @ v[row, at, head[0]]
                np.testing.assert_allclose(reference[0][row, at, *head], expected, rtol=2e-5, atol=2e-6)


def by_offsets(query, key, value, q_seqlen, kv_seqlen, q_offsets, kv_offsets, *, scale, mask_type):
    """What cuDNN's packed form computes, from its arguments alone; NaN wherever it leaves memory as it was."""
    assert mask_type == "causal" and q_seqlen.shape == (B, MOST) and q_offsets.shape == (B, MOST + 1)
    index = jnp.arange(T)

    def of_row(q, k, v, lengths, offsets):
        ends = jnp.where(lengths > 0, offsets[:-1] + lengths, -1)
        is_in = (index[:, None] >= offsets[:-1]) & (index[:, None] < ends) & (offsets[:-1] >= 0)
        segment = jnp.where(is_in.any(1), is_in.argmax(1), -1)
        mask = (segment[:, None] == segment) & (index[:, None] >= index) & (segment >= 0)[:, None]
        k, v = (jnp.repeat(x, q.shape[1] // k.shape[1], axis=1) for x in (k, v))
        scores = jnp.where(mask, jnp.einsum("tnh,snh->nts", q, k) * scale, -1e30)
        out = jnp.einsum("nts,snh->tnh", jax.nn.softmax(scores), v)
        return jnp.where((segment >= 0)[:, None, None], out, jnp.nan)

    @jax.custom_vjp
    def attend(q, k, v):
        return jax.vmap(of_row)(q, k, v, q_seqlen, q_offsets)

    def forward(q, k, v):
        return jax.vjp(lambda *x: jax.vmap(of_row)(*x, q_seqlen, q_offsets), q, k, v)

    def backward(pull, d_out):
        total = jnp.max(q_offsets, axis=1)  # the end of the last segment
        is_real = (index[None] < total[:, None])[..., None, None]
        return tuple(jnp.where(is_real, g, jnp.nan) for g in pull(d_out))

    attend.defvjp(forward, backward)
    # By hand from LENGTHS: starts, then the end of the last segment, then -1; lengths, then -1.
    np.testing.assert_array_equal(q_offsets, [[0, 120, 150, 157, 158, 218], [0, 5, 105, -1, -1, -1]])
    np.testing.assert_array_equal(q_seqlen, [[120, 30, 7, 1, 60], [5, 100, -1, -1, -1]])
    np.testing.assert_array_equal(q_offsets, kv_offsets)
    np.testing.assert_array_equal(q_seqlen, kv_seqlen)
    return attend(query, key, value)


def test_offsets_are_the_segments_and_padding_never_leaks(inputs, packed, reference, monkeypatch):
    """The wrapper around JAX's private function, with that function replaced by one that obeys its contract."""
    peer = types.SimpleNamespace(PADDING_CAUSAL="causal")
    monkeypatch.setattr(attention_kernels, "_offsets_function", lambda: (by_offsets, peer))
    *qkv, weight = inputs
    is_real = (packed.segments_BT > 0)[..., None, None, None]
    out, pull = jax.vjp(lambda q, k, v: attention_kernels.cudnn_offsets(q, k, v, packed), *qkv)
    for ours, theirs in zip((out, *pull(jnp.where(is_real, weight, 0))), reference, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["gathered", "splash"])
def test_a_backend_is_xla(name, inputs, packed, reference):
    gathered = functools.partial(attention_kernels.cudnn_gathered, implementation="xla")
    kernel = gathered if name == "gathered" else attention_kernels.splash_interpreted
    for ours, theirs in zip(outputs_and_gradients(kernel, inputs, packed), reference, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


def test_queries_in_chunks_are_the_same(inputs, packed, reference, monkeypatch):
    monkeypatch.setattr(attention, "SCORES", 1 << 14)
    text = str(jax.make_jaxpr(lambda q, k, v: xla(q, k, v, packed))(*inputs[:3]))
    assert f"{B},{K},{G},{T},{T}" not in text  # the scores of all queries at once
    for ours, theirs in zip(outputs_and_gradients(xla, inputs, packed), reference, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ways", [1, 2, 4])
def test_time_is_cut_and_joined(ways):
    x = jnp.arange(2 * 24 * 3).reshape(2, 24, 3)
    parts = cut_time(x, 2, ways)
    assert parts.shape == (12 // ways, 2, 2 * ways, 3)
    np.testing.assert_array_equal(join_time(parts, ways), x)
    np.testing.assert_array_equal(parts[0, 0, :2], x[0, :2])


def test_splash_needs_rows_of_whole_blocks(inputs, packed):
    q, k, v, _ = (x[:, :100] for x in inputs)
    with pytest.raises(ValueError, match="multiple of 128 tokens, not 100; set packing.multiple=128"):
        attention_kernels.splash(q, k, v, packed)


# ---- packed against unpacked, through the model


@pytest.fixture(scope="module")
def group():
    return examples(10, seed=3)


@pytest.mark.parametrize("norm", ["example", "token"])
def test_packed_rows_have_the_loss_and_gradients_of_unpacked_ones(norm, group):
    sharding = batch_sharding(one_device())
    compute = jax.jit(lambda decoder, batch: gradients(decoder, batch, RECIPE))
    packed = compute(model(), place_batch(rows(group, 3, 128, norm), 1, sharding))
    single = compute(model(), place_batch(unpacked(group, 32, norm), 1, sharding))
    np.testing.assert_allclose(packed[0], single[0], rtol=1e-5)
    assert_same_gradients(packed[1], single[1])


def test_log_probabilities_do_not_know_of_neighbours(group):
    decoder = model()

    @jax.jit
    def log_probabilities(tokens, positions, segments, targets):
        attend = segmented("xla", Segments(segments, positions, 8, 32))
        x, _ = forward(decoder, tokens, positions, attend)
        return jnp.take_along_axis(jax.nn.log_softmax(logits(decoder, x)), targets[..., None], -1)[..., 0]

    batch = rows(group, 3, 128)
    ours = np.asarray(log_probabilities(batch.tokens, batch.positions, batch.segments, batch.targets))
    is_other = batch.segments != 2  # all but the second example of each row
    tokens = np.where(is_other, (batch.tokens + 7) % TINY.V, batch.tokens)
    changed = np.asarray(log_probabilities(tokens, batch.positions, batch.segments, batch.targets))
    assert (~is_other).any() and (changed[is_other] != ours[is_other]).any()
    np.testing.assert_array_equal(changed[~is_other], ours[~is_other])


# ---- who may run


def test_choice_of_the_backend():
    mesh = one_device()
    assert choose("auto", TINY, mesh, dtype="float32", is_packed=True) == "xla"
    with pytest.raises(BadInput, match="attention='flash' is not known; use auto or one of xla, splash"):
        choose("flash", TINY, mesh, dtype="float32", is_packed=True)
    with pytest.raises(BadInput, match="attention=splash: it runs on a tpu, this is a cpu; use auto"):
        choose("splash", TINY, mesh, dtype="float32", is_packed=True)
    with pytest.raises(BadInput, match="attention=cudnn_causal: it does not keep the examples of a packed row apart"):
        choose("cudnn_causal", TINY, mesh, dtype="bfloat16", is_packed=True)
    eight = make_mesh(MeshConfig(fsdp=1, context=4, tensor=2))
    with pytest.raises(BadInput, match="tensor x context = 8 does not divide the 2 kv heads"):
        choose("splash_interpreted", TINY, eight, dtype="float32", is_packed=True)


def test_on_a_gpu_packed_rows_never_take_the_causal_kernel(monkeypatch):
    device = types.SimpleNamespace(platform="gpu")  # all of a mesh that the choice reads
    mesh: Any = types.SimpleNamespace(devices=np.array([device]), shape={"tensor": 1, "context": 1})
    assert choose("auto", TINY, mesh, dtype="bfloat16", is_packed=False) == "cudnn_causal"
    assert choose("auto", TINY, mesh, dtype="bfloat16", is_packed=True) == "cudnn"
    assert choose("auto", TINY, mesh, dtype="float32", is_packed=True) == "xla"
    with pytest.raises(BadInput, match="attention=cudnn: it takes bfloat16, dtype is float32"):
        choose("cudnn", TINY, mesh, dtype="float32", is_packed=True)
    monkeypatch.setattr(attention_kernels, "_offsets_function", lambda: (lambda query, key, value: None, object))
    with pytest.raises(BadInput, match="takes no q_seqlen, kv_seqlen.*; use cudnn_gathered"):
        choose("cudnn", TINY, mesh, dtype="bfloat16", is_packed=True)
    assert choose("auto", TINY, mesh, dtype="bfloat16", is_packed=True) == "cudnn_gathered"
    monkeypatch.undo()
    monkeypatch.setattr(attention_kernels, "OFFSETS_MODULE", "jax._src.gone")
    with pytest.raises(BadInput, match="this JAX has no jax._src.gone as it was"):
        choose("cudnn", TINY, mesh, dtype="bfloat16", is_packed=True)


def test_every_backend_says_whether_it_keeps_segments():
    assert {name for name, backend in BACKENDS.items() if not backend.keeps_segments} == {"cudnn_causal"}
