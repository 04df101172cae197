"""Every split of eight devices over the four axes is one device; time over devices: by heads or stripes, in balance."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from train_cases import RECIPE, WIDE, assert_same_gradients, examples, model, rows

from s1jax.models import attention
from s1jax.models.attention import Segments, in_stripes, segmented, stripes
from s1jax.parallel.mesh import AXES, MeshConfig, make_mesh
from s1jax.train.loss import LossConfig
from s1jax.train.step import batch_sharding, gradients, initial_state, place_batch, placed, state_shardings

SMALL = dataclasses.replace(WIDE, L=1)
FEW_HEADS = dataclasses.replace(SMALL, K=2, G=4)
CHUNKED = dataclasses.replace(RECIPE, loss=LossConfig(chunk=16))
ROWS = rows(examples(24, seed=5), 8, 64)
SPLITS = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(sizes) == 8]


@functools.cache
def alone(config):
    batch = place_batch(ROWS, 1, batch_sharding(make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])))
    compute = jax.jit(lambda decoder, batch: gradients(decoder, batch, CHUNKED), compiler_options=parity.FAST)
    return jax.device_get(compute(model(config), batch))


def split(config, sizes):
    """Loss and gradients of the step's own function on a mesh, and how many stripes it dealt rows in."""
    mesh = make_mesh(MeshConfig(*sizes))
    shardings = state_shardings(jax.eval_shape(lambda: initial_state(model(config), CHUNKED)), mesh, CHUNKED).model

    def compute(decoder, batch):
        with placed(mesh):
            return gradients(decoder, batch, CHUNKED, mesh)

    decoder = jax.device_put(model(config), shardings)
    batch = place_batch(ROWS, 1, batch_sharding(mesh))
    whole = NamedSharding(mesh, P())
    program = jax.jit(compute, out_shardings=(whole, shardings), compiler_options=parity.FAST)
    return *program(decoder, batch), stripes("xla", config.K, 64, mesh)


def test_there_are_twenty_splits():
    assert len(SPLITS) == 20 and AXES == ("data", "fsdp", "context", "tensor")


@pytest.mark.parametrize("sizes", SPLITS, ids=lambda sizes: "x".join(map(str, sizes)))
def test_every_split_has_the_loss_and_gradients_of_one_device(sizes):
    loss, grads, dealt = split(SMALL, sizes)
    np.testing.assert_allclose(loss, alone(SMALL)[0], rtol=1e-5)
    assert_same_gradients(grads, alone(SMALL)[1])
    assert dealt == 1  # eight heads: each device has whole rows of some


@pytest.mark.parametrize("sizes", [(1, 1, 8, 1), (1, 1, 4, 2)], ids=lambda sizes: "x".join(map(str, sizes)))
def test_rows_dealt_in_stripes_have_them_too(sizes, monkeypatch):
    one = alone(FEW_HEADS)  # in one round, in order
    monkeypatch.setattr(attention, "ROUND", 16)
    monkeypatch.setattr(attention, "SCORES", 1 << 9)  # and the queries of a round in chunks
    loss, grads, dealt = split(FEW_HEADS, sizes)
    np.testing.assert_allclose(loss, one[0], rtol=1e-5)
    assert_same_gradients(grads, one[1])
    assert dealt == 4


# ---- balance

T, K, G, H = 512, 2, 2, 8


def work(mesh, rounds, monkeypatch):
    """Operations of one device for attention forward and backward over one row of T, by XLA's own count."""
    monkeypatch.setattr(attention, "ROUND", T // rounds)
    monkeypatch.setattr(attention, "SCORES", 1 << 30)

    def loss(q, k, v, segments, positions):
        count = stripes("xla", K, T, mesh)
        if count > 1:
            segments, positions = (in_stripes(x, count, mesh) for x in (segments, positions))
        packed = Segments(segments, positions, 1, T, count)
        return jnp.sum(jnp.square(segmented("xla", packed, mesh)(q, k, v, None)[0]))

    def compute(*inputs):
        with placed(mesh):
            return jax.grad(loss, argnums=(0, 1, 2))(*inputs)

    heads = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, T, K, G, H), (1, T, K, H), (1, T, K, H))]
    ids = [jax.ShapeDtypeStruct((1, T), jnp.int32)] * 2
    where = NamedSharding(mesh, P(None, "context"))
    return (
        jax.jit(compute, in_shardings=where, out_shardings=where).lower(*heads, *ids).compile().cost_analysis()["flops"]
    )


def test_each_device_does_its_share_of_the_causal_half(monkeypatch):
    """Every device runs the same program, so what is counted for one is the work of each."""
    one = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    square, half = work(one, 1, monkeypatch), work(one, 4, monkeypatch)
    assert half < 0.65 * square  # (4 + 1) / 8
    exchanged = make_mesh(MeshConfig(fsdp=1, context=2), jax.devices()[:2])
    gathered = make_mesh(MeshConfig(fsdp=1, context=4), jax.devices()[:4])
    assert stripes("xla", K, T, exchanged) == 1 and attention.exchanges_heads(K, exchanged)
    np.testing.assert_allclose(2 * work(exchanged, 4, monkeypatch), half, rtol=0.05)
    np.testing.assert_allclose(4 * work(gathered, 4, monkeypatch), half, rtol=0.05)


def test_stripes_share_what_is_visible_evenly():
    """Pairs of query and key that count, by device: a row of one example, 8 stripes; beside one piece each."""
    mesh = make_mesh(MeshConfig(fsdp=1, context=8))
    positions = jnp.arange(4096)[None]

    def shares(count):
        dealt = jax.jit(lambda x: in_stripes(x, count, mesh))(positions)
        assert sorted(np.asarray(dealt)[0].tolist()) == list(range(4096))
        pairs = np.array([np.sum(np.asarray(shard.data) + 1) for shard in dealt.addressable_shards])
        return pairs / pairs.mean()

    with placed(mesh):
        assert shares(8).max() < 1.12 and shares(1).max() > 1.8
