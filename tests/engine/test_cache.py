"""The cache against plain attention over everything written so far, for each type; where rows are moved and cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.engine import cache as kv
from s1jax.models import layers

CLASSES = ((2, 6), (3, 10))
L, K, G, H = 2, 2, 3, 4
B = 5
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2, "int8": 3e-2}
WRITE, ATTEND = jax.jit(kv.write), jax.jit(kv.attend)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def filled(dtype: str, n: int, seed: int = 0) -> tuple[kv.Layer, np.ndarray, np.ndarray]:
    """One layer with `n` positions of every row written, and what was written."""
    layer = kv.empty(kv.Size(L, K, H, dtype), CLASSES)[0]
    k_BTKH, v_BTKH = noise(B, n, K, H, seed=seed), noise(B, n, K, H, seed=seed + 1)
    for t in range(n):
        layer = WRITE(layer, k_BTKH[:, t], v_BTKH[:, t], np.full(B, t), np.ones(B, bool))
    return layer, k_BTKH, v_BTKH


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_attention_is_that_over_all_positions_written(dtype):
    layer, k_BTKH, v_BTKH = filled(dtype, 6)
    q_BKGH, position_B = noise(B, K, G, H, seed=5), np.array([0, 5, 3, 5, 1])
    out_BKGH = ATTEND(layer, q_BKGH, position_B)
    mask_BTS = np.arange(6)[None, None] <= position_B[:, None, None]
    expected = layers.attention(q_BKGH[:, None], k_BTKH, v_BTKH, mask_BTS)[:, 0]
    np.testing.assert_allclose(out_BKGH, expected, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rows_that_are_not_active_and_positions_beyond_the_end_write_nothing(dtype):
    layer, _, _ = filled(dtype, 3)
    new = noise(B, K, H, seed=9)
    idle = WRITE(layer, new, new, np.full(B, 1), np.zeros(B, bool))
    beyond = WRITE(layer, new, new, np.array([6, 7, 10, 11, 100]), np.ones(B, bool))
    for other in (idle, beyond):
        jax.tree.map(np.testing.assert_array_equal, other, layer)
    one = WRITE(layer, new, new, np.full(B, 1), np.arange(B) == 3)
    changed = [np.asarray(a != b).any(axis=(1, 2, 3)) for a, b in zip(slots_of(one), slots_of(layer), strict=True)]
    assert np.concatenate(changed).tolist() == [False, False, False, True, False]


def slots_of(layer: kv.Layer) -> list[np.ndarray]:
    return [np.asarray(slots.k_BKSH.astype(jnp.float32)) for slots in layer]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_garbage_behind_a_row_is_not_seen(dtype):
    """What lies behind the position may be anything finite; another row's NaN is not seen either."""
    layer, _, _ = filled(dtype, 3)
    q_BKGH, position_B = noise(B, K, G, H, seed=5), np.full(B, 2)
    before = ATTEND(layer, q_BKGH, position_B)
    huge = np.full((B, K, H), 1e4, np.float32)
    spoiled = WRITE(layer, huge, huge, np.full(B, 3), np.ones(B, bool))
    np.testing.assert_array_equal(ATTEND(spoiled, q_BKGH, position_B), before)
    spoiled = WRITE(layer, huge * np.nan, huge * np.nan, np.full(B, 0), np.arange(B) == 1)
    after = np.asarray(ATTEND(spoiled, q_BKGH, position_B))
    assert np.isnan(after[1]).all() or dtype == "int8"
    np.testing.assert_array_equal(np.delete(after, 1, axis=0), np.delete(np.asarray(before), 1, axis=0))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_row_moves_between_classes_and_overwrites_its_slot_whole(dtype):
    size = kv.Size(L, K, H, dtype)
    source = tuple(kv.from_prompt(noise(4, 8, K, H, seed=s), noise(4, 8, K, H, seed=s + 9), dtype) for s in range(L))
    poison = jax.tree.map(
        lambda x: jnp.full_like(x, jnp.nan) if x.dtype != jnp.int8 else jnp.full_like(x, 127), kv.empty(size, CLASSES)
    )
    up = kv.insert(poison, 1, jnp.int32(2), source, jnp.int32(3))
    row = kv.extract(up, 1, jnp.int32(2))
    for slots, given in zip(row, source, strict=True):
        np.testing.assert_array_equal(slots.k_BKSH[0, :, :8], given.k_BKSH[3])
        np.testing.assert_array_equal(slots.v_BKSH[0, :, :8], given.v_BKSH[3])
        assert not np.asarray(slots.v_BKSH[0, :, 8:], np.float32).any()
    down = kv.extract(kv.insert(up, 0, jnp.int32(1), row, jnp.int32(0)), 0, jnp.int32(1))
    for slots, given in zip(down, source, strict=True):
        np.testing.assert_array_equal(slots.k_BKSH[0], given.k_BKSH[3, :, :6])
    jax.tree.map(assert_same, kv.extract(up, 1, jnp.int32(1)), kv.extract(poison, 1, jnp.int32(1)))


def assert_same(a: jax.Array, b: jax.Array) -> None:
    """Equal, NaN included."""
    np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_chunk_is_what_single_writes_give(dtype):
    layer, k_BTKH, v_BTKH = filled(dtype, 6)
    one = jax.tree.map(lambda x: x[:1], layer[1])
    empty = jax.tree.map(jnp.zeros_like, one)
    k, v = jnp.asarray(k_BTKH[2:3]), jnp.asarray(v_BTKH[2:3])
    padded = jnp.pad(k[:, :2], ((0, 0), (0, 3), (0, 0), (0, 0)))
    first = kv.write_chunk(empty, padded, jnp.pad(v[:, :2], ((0, 0), (0, 3), (0, 0), (0, 0))), 0, 2)
    both = kv.write_chunk(first, k[:, 2:], v[:, 2:], 2, 4)
    jax.tree.map(np.testing.assert_array_equal, both, one)


def test_int8_keeps_zero_and_stays_within_half_a_step():
    x = noise(1, K, 5, H)
    x[0, 0, 0] = 0
    slots = kv.pack(jnp.asarray(x), jnp.asarray(x), "int8")
    k_BSKH, _ = kv.unpack(slots, "float32")
    back = np.asarray(k_BSKH).swapaxes(1, 2)
    assert not back[0, 0, 0].any()
    assert (np.abs(back - x) <= np.asarray(slots.k_scale_BKS)[..., None] / 2 + 1e-7).all()


def test_bytes_per_token_are_those_of_the_arrays():
    for dtype in TOLERANCE:
        size = kv.Size(L, K, H, dtype)
        taken = sum(x.nbytes for x in jax.tree.leaves(kv.empty(size, CLASSES)))
        assert taken == size.bytes_per_token * sum(rows * length for rows, length in CLASSES)
