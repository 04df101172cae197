"""The step: whatever the shape of the work, the same loss and gradients; and where its arrays lie."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_cases import ONE, RECIPE, WIDE, examples, model, one_device, rows, unpacked

from s1jax.checkpoint.layout import entries
from s1jax.config import BadInput
from s1jax.models import attention
from s1jax.models.decoder import Decoder, named
from s1jax.parallel.mesh import MeshConfig, make_mesh
from s1jax.train.flops import matmul_parameters, peak_flops, train_flops
from s1jax.train.loss import LossConfig
from s1jax.train.step import (
    batch_sharding,
    initial_state,
    loss_of,
    make_eval,
    make_step,
    place_batch,
    state_shardings,
)

GROUP = examples(16, seed=5)
ROWS = rows(GROUP, 8, 64)
FEW_HEADS = dataclasses.replace(WIDE, K=2, G=8)


@functools.cache
def start_of(config):
    """On the host: what is on a device is donated by the first step."""
    return jax.device_get(jax.jit(initial_state, static_argnums=1)(model(config), RECIPE))


def three_steps(arrays=ROWS, *, mesh=ONE, recipe=RECIPE, micro_batches=1, config=WIDE, explicit=False):
    """Losses and gradient norms of three steps, and the parameters behind them."""
    devices = jax.devices()[: 1 if mesh == ONE else 8]
    mesh = make_mesh(mesh, devices, explicit=explicit)
    shapes = jax.eval_shape(lambda: initial_state(model(config), recipe))
    shardings = state_shardings(shapes, mesh, recipe)
    state = jax.device_put(start_of(config), shardings)
    step, batch = make_step(recipe, mesh, shardings), place_batch(arrays, micro_batches, batch_sharding(mesh))
    values = []
    for _ in range(3):
        state, metrics = step(state, batch)
        values += [float(metrics.loss), float(metrics.grad_norm)]
    kinds = {x.sharding.memory_kind for x in jax.tree.leaves(state.optimizer) if x.ndim}
    assert kinds == {"pinned_host" if recipe.offload_optimizer else "device"}
    return np.array(values), {name: np.asarray(x) for name, x in named(state.model).items()}


def assert_same(ours, theirs):
    """Losses and norms within 1e-5; parameters within a hundredth of what three steps at 1e-2 can change."""
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    for name, x in theirs[1].items():
        np.testing.assert_allclose(ours[1][name], x, atol=1e-4, err_msg=name)


@pytest.fixture(scope="module")
def plain():
    return three_steps()


@pytest.fixture(scope="module")
def plain_few_heads():
    return three_steps(config=FEW_HEADS)


CHUNKED = dataclasses.replace(RECIPE, loss=LossConfig(chunk=16))
WEIGHED = int((ROWS.weights > 0).sum(1).max())
DROPPED = dataclasses.replace(ROWS, kept=np.argsort(ROWS.weights == 0, axis=1, kind="stable")[:, :WEIGHED])


@pytest.mark.parametrize(
    "options",
    [
        {"micro_batches": 4},
        {"arrays": unpacked(GROUP, 32), "micro_batches": 2, "recipe": dataclasses.replace(CHUNKED, remat="full")},
        {"mesh": MeshConfig(data=8, fsdp=1)},
        {"arrays": DROPPED, "micro_batches": 2, "recipe": CHUNKED},
        {"arrays": DROPPED, "mesh": MeshConfig(data=2, fsdp=2, tensor=2), "recipe": CHUNKED},
        {"recipe": dataclasses.replace(RECIPE, remat="dots")},
        {"recipe": dataclasses.replace(RECIPE, remat="attention")},
        {"recipe": dataclasses.replace(RECIPE, remat="offload", offload_optimizer=True)},
        {"mesh": MeshConfig(fsdp=2, context=2, tensor=2), "micro_batches": 2, "recipe": CHUNKED},
        {"mesh": MeshConfig(fsdp=2, context=2, tensor=2), "explicit": True, "recipe": CHUNKED},
    ],
    ids=[
        "accumulated",
        "unpacked, chunked, remat",
        "data",
        "masked positions dropped",
        "masked positions dropped on a mesh",
        "dots",
        "attention",
        "offload",
        "fsdp x context x tensor",
        "explicit axes",
    ],
)
def test_the_shape_of_the_work_does_not_matter(options, plain):
    assert_same(three_steps(**options), plain)


def test_gathered_keys_where_heads_cannot_be_exchanged(plain_few_heads, monkeypatch):
    monkeypatch.setattr(attention, "SCORES", 1 << 8)  # queries in chunks too
    assert not attention.exchanges_heads(2, make_mesh(MeshConfig(fsdp=2, context=4)))
    ours = three_steps(config=FEW_HEADS, mesh=MeshConfig(fsdp=2, context=4), recipe=CHUNKED)
    assert_same(ours, plain_few_heads)


def test_each_policy_keeps_what_it_says():
    decoder = jax.eval_shape(lambda: model(WIDE))
    batch = jax.tree.map(lambda x: x[0], place_batch(ROWS, 1, batch_sharding(one_device())))

    def loss(remat):
        return lambda decoder: loss_of(decoder, batch, dataclasses.replace(RECIPE, remat=remat))

    def kept(remat):
        return [x.shape for x in jax.tree.leaves(jax.eval_shape(lambda m: jax.vjp(loss(remat), m)[1], decoder))]

    sizes = [sum(map(math.prod, kept(remat))) for remat in ("none", "dots", "attention", "full", "offload")]
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3] == sizes[4]
    rows_, length = ROWS.tokens.shape
    output = (WIDE.L, rows_, length, WIDE.K, WIDE.G, WIDE.H)
    assert output in kept("attention") and output not in kept("full")
    assert (WIDE.L, rows_, length, WIDE.D) in kept("full")
    programs = {remat: str(jax.make_jaxpr(jax.grad(loss(remat)))(decoder)) for remat in ("full", "offload")}
    assert "MemorySpace.Host" in programs["offload"] and "MemorySpace.Host" not in programs["full"]


def test_masked_positions_do_not_reach_the_head():
    """Logits are made of as many positions as weigh in the loss, not of as many as the row has."""
    decoder = jax.eval_shape(lambda: model(dataclasses.replace(WIDE, V=80)))
    for arrays, positions in ((ROWS, 64), (DROPPED, WEIGHED)):
        batch = jax.tree.map(lambda x: x[0], place_batch(arrays, 1, batch_sharding(one_device())))
        program = str(jax.make_jaxpr(lambda m, batch=batch: loss_of(m, batch, RECIPE))(decoder))
        assert f"f32[8,{positions},80]" in program
        assert ("f32[8,64,80]" in program) == (arrays is ROWS)


def test_validation_is_the_loss_without_an_update(plain):
    mesh = one_device()
    shardings = state_shardings(start_of(WIDE), mesh, RECIPE)
    batch = place_batch(ROWS, 2, batch_sharding(mesh))
    np.testing.assert_allclose(make_eval(RECIPE, mesh, shardings)(start_of(WIDE), batch), plain[0][0], rtol=1e-5)


def test_arrays_lie_in_shards():
    mesh = make_mesh(MeshConfig(fsdp=2, context=2, tensor=2))
    state = jax.eval_shape(lambda: initial_state(Decoder(WIDE, jax.random.key(0)), RECIPE))
    shardings = state_shardings(state, mesh, RECIPE)
    big = [(x, s) for x, s in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True) if x.ndim > 2]
    for x, sharding in big:
        assert math.prod(sharding.shard_shape(x.shape)) * 2 <= x.size
    with pytest.raises(BadInput, match="do not divide the 64 of dimension D"):
        narrow = jax.eval_shape(lambda: initial_state(Decoder(WIDE, jax.random.key(0)), RECIPE))
        state_shardings(narrow, make_mesh(MeshConfig(data=1, fsdp=3, context=1, tensor=2), jax.devices()[:6]), RECIPE)


def test_the_state_is_donated():
    mesh = one_device()
    state = jax.tree.map(jnp.asarray, start_of(WIDE))
    step = make_step(RECIPE, mesh, state_shardings(state, mesh, RECIPE))
    after, _ = step(state, place_batch(ROWS, 1, batch_sharding(mesh)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.model)) and int(after.step) == 1


def test_operations_are_counted_from_the_products():
    """By hand for one layer: every product of the forward pass twice again in the backward pass."""
    tensors = {entry.path: math.prod(entry.file_shape) for entry in entries(WIDE)}
    matrices = sum(
        size for path, size in tensors.items() if path.split(".")[-1] in ("q", "k", "v", "o", "gate", "up", "down")
    )
    assert matmul_parameters(WIDE) == WIDE.L * matrices + WIDE.V * WIDE.D
    scores = sum(2 * 2 * n * n * WIDE.K * WIDE.G * WIDE.H / 2 for n in (10, 30)) * WIDE.L
    assert train_flops(WIDE, [10, 30]) == 3 * (2 * matmul_parameters(WIDE) * 40 + scores)
    assert peak_flops(jax.devices()) is None


def test_operations_of_the_paper_model():
    """Qwen2.5-32B: 31.98e9 parameters in products; 4.7M ids of mean square length 27.6M over five epochs: 4.8e18."""
    sizes = dataclasses.replace(WIDE, D=5120, K=8, G=5, H=128, F=27648, V=152064, L=64)
    assert round(matmul_parameters(sizes) / 1e6) == 31984
    assert 4.7e18 < train_flops(sizes, [4700] * 5000) < 4.9e18
