"""Keys and values of decoding: a tuple over layers, of a tuple over length classes, of `Slots`.

Rows are grouped in classes of one length each, in the order of the classes: row b of a decode step is slot
`b - sum(rows of the classes before)` of its class. Attention reads a whole class, so its cost follows the class and not
the longest row, and the program never changes. Only this module knows the order of the axes.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from s1jax.parallel.axes import constrain


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """Keys and values of one layer and one class, of any float type or int8.

    Time lies inside the heads: a decode step contracts over `H` and then over `S`, each contiguous for one head.

    Attributes:
      k_BKSH, v_BKSH: keys (after the rotation) and values.
      k_scale_BKS, v_scale_BKS: float32, one a position and head, with which int8 values are multiplied; else None.
    """

    k_BKSH: jax.Array
    v_BKSH: jax.Array
    k_scale_BKS: jax.Array | None = None
    v_scale_BKS: jax.Array | None = None


Layer = tuple[Slots, ...]
Cache = tuple[Layer, ...]


@dataclasses.dataclass(frozen=True)
class Size:
    """What a cache must know of a model: layers, kv heads and their width, and the type kept (a float type or int8)."""

    L: int
    K: int
    H: int
    dtype: str

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one position of one row takes in all layers."""
        scale = 4 if self.dtype == "int8" else 0
        return 2 * self.L * self.K * (self.H * jnp.dtype(self.dtype).itemsize + scale)


def empty(size: Size, classes: Sequence[tuple[int, int]]) -> Cache:
    """A cache of zeros for classes of `(rows, length)`."""

    def slots(rows: int, length: int) -> Slots:
        values = [jnp.zeros((rows, size.K, length, size.H), size.dtype) for _ in range(2)]
        scales = [jnp.zeros((rows, size.K, length), jnp.float32) for _ in range(2)] if size.dtype == "int8" else []
        return place(Slots(*values, *scales))

    return tuple(tuple(slots(rows, length) for rows, length in classes) for _ in range(size.L))


def place(slots: Slots) -> Slots:
    """`slots` placed by the ambient rules (kv heads over `tensor`); the rows of an engine are never sharded."""
    return jax.tree.map(lambda x: constrain(x, "BKSH"[: x.ndim]), slots)


def write(layer: Layer, k_BKH: jax.Array, v_BKH: jax.Array, position_B: jax.Array, active_B: jax.Array) -> Layer:
    """Write one position of every active row; rows that are not active write nothing."""
    written, begin = [], 0
    for slots in layer:
        rows, _, length, _ = slots.k_BKSH.shape
        part = slice(begin, begin + rows)
        new = pack(k_BKH[part, :, None], v_BKH[part, :, None], slots.k_BKSH.dtype)
        at_B = jnp.where(active_B[part], position_B[part], length)  # beyond the end: dropped
        # XLA rewrites a scatter of one row as a slice that is read, chosen and written, and on a CPU copies the cache.
        at_B, times = (jnp.append(at_B, length), 2) if rows == 1 else (at_B, 1)
        row_B = jnp.arange(rows).repeat(times)

        def put(old: jax.Array, x: jax.Array, row_B: jax.Array = row_B, at_B: jax.Array = at_B) -> jax.Array:
            return _scatter(old, x[:, :, 0].repeat(len(at_B) // len(x), axis=0), row_B, at_B)

        written.append(place(jax.tree.map(put, slots, new)))
        begin += rows
    return tuple(written)


def _scatter(old: jax.Array, new: jax.Array, row_B: jax.Array, at_B: jax.Array) -> jax.Array:
    """`old` with `new` at these rows and positions. XLA scatters into bfloat16 on a CPU by way of float32 copies."""

    def plain(old: jax.Array, new: jax.Array) -> jax.Array:
        head_K = jnp.arange(old.shape[1])
        return old.at[row_B[:, None], head_K, at_B[:, None]].set(new, mode="drop")

    def as_bits(old: jax.Array, new: jax.Array) -> jax.Array:
        old, new = (jax.lax.bitcast_convert_type(x, jnp.uint16) for x in (old, new))
        return jax.lax.bitcast_convert_type(plain(old, new), jnp.bfloat16)

    if old.dtype != jnp.bfloat16:
        return plain(old, new)
    return jax.lax.platform_dependent(old, new, cpu=as_bits, default=plain)


def attend(layer: Layer, q_BKGH: jax.Array, position_B: jax.Array) -> jax.Array:
    """Attention of one query a row over positions `0..position` of its own slot: `[B, K, G, H]`, in `q`'s type."""
    out, begin = [], 0
    for slots in layer:
        part = slice(begin, begin + slots.k_BKSH.shape[0])
        out.append(_attend(slots, q_BKGH[part], position_B[part]))
        begin = part.stop
    return out[0] if len(out) == 1 else jnp.concatenate(out)


def _attend(slots: Slots, q_BKGH: jax.Array, position_B: jax.Array) -> jax.Array:
    """Masked scores are replaced, not added to. Values need no mask: a slot is overwritten whole when a row enters it,
    so what lies behind a row's end is its own past or zero, and zero weight times that is zero.
    """
    dtype = q_BKGH.dtype
    score_BKGS = jnp.einsum(
        "BKGH,BKSH->BKGS", q_BKGH, slots.k_BKSH.astype(dtype), preferred_element_type=jnp.float32
    ) / math.sqrt(q_BKGH.shape[-1])
    if slots.k_scale_BKS is not None:
        score_BKGS = score_BKGS * slots.k_scale_BKS[:, :, None]
    seen_BS = jnp.arange(slots.k_BKSH.shape[2]) <= position_B[:, None]
    score_BKGS = jnp.where(seen_BS[:, None, None], score_BKGS, jnp.finfo(jnp.float32).min)
    weight_BKGS = jax.nn.softmax(score_BKGS, axis=-1)
    if slots.v_scale_BKS is not None:
        weight_BKGS = weight_BKGS * slots.v_scale_BKS[:, :, None]
    out_BKGH = jnp.einsum(
        "BKGS,BKSH->BKGH",
        weight_BKGS.astype(dtype),
        slots.v_BKSH.astype(dtype),
        preferred_element_type=jnp.float32,
    )
    return out_BKGH.astype(dtype)


def pack(k_BKSH: jax.Array, v_BKSH: jax.Array, dtype: jnp.dtype | str) -> Slots:
    """Keys and values in the cache's type; for int8 with a scale per position and head."""
    if jnp.dtype(dtype) != jnp.int8:
        return Slots(k_BKSH.astype(dtype), v_BKSH.astype(dtype))
    (k, k_scale), (v, v_scale) = _quantize(k_BKSH), _quantize(v_BKSH)
    return Slots(k, v, k_scale, v_scale)


def _quantize(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    wide = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=-1) / 127
    values = jnp.round(wide / jnp.where(scale > 0, scale, 1)[..., None])
    return values.astype(jnp.int8), scale


def from_prompt(k_BTKH: jax.Array, v_BTKH: jax.Array, dtype: jnp.dtype | str) -> Slots:
    """Slots of the length of a prompt, from what a forward pass hands to `attend`."""
    return place(pack(k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2), dtype))


def insert(cache: Cache, of_class: int, slot: jax.Array, source: Sequence[Slots], row: jax.Array) -> Cache:
    """Overwrite one slot whole with row `row` of `source` (per layer, any length): cut, or filled up with zeros."""

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        length = old.shape[2]
        new = jax.lax.dynamic_index_in_dim(new, row, axis=0)[:, :, :length]
        new = jnp.pad(new, [(0, length - n if axis == 2 else 0) for axis, n in enumerate(new.shape)])
        return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), slot, axis=0)

    def change(layer: Layer, slots: Slots) -> Layer:
        changed = place(jax.tree.map(put, layer[of_class], slots))
        return tuple(changed if i == of_class else other for i, other in enumerate(layer))

    return tuple(change(layer, slots) for layer, slots in zip(cache, source, strict=True))


def extract(cache: Cache, of_class: int, slot: jax.Array) -> tuple[Slots, ...]:
    """A copy of one slot, per layer: `Slots` of one row."""
    return tuple(
        jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, slot, axis=0), layer[of_class]) for layer in cache
    )


def resize(row: Sequence[Slots], length: int) -> tuple[Slots, ...]:
    """Rows of another length: zeros are added, or what is longer is cut."""

    def one(x: jax.Array) -> jax.Array:
        x = x[:, :, :length]
        return jnp.pad(x, [(0, length - n if axis == 2 else 0) for axis, n in enumerate(x.shape)])

    return tuple(jax.tree.map(one, slots) for slots in row)


def write_chunk(slots: Slots, k_BTKH: jax.Array, v_BTKH: jax.Array, start: jax.Array, count: jax.Array) -> Slots:
    """Write the first `count` positions of a chunk from position `start` on; the rest of it is padding, not written."""
    new = from_prompt(k_BTKH, v_BTKH, slots.k_BKSH.dtype)
    at_T = jnp.arange(k_BTKH.shape[1])
    at_T = jnp.where(at_T < count, start + at_T, slots.k_BKSH.shape[2])
    return jax.tree.map(lambda old, x: old.at[:, :, at_T].set(x, mode="drop"), slots, new)


def unpack(slots: Slots, dtype: jnp.dtype | str) -> tuple[jax.Array, jax.Array]:
    """Keys and values `[B, S, K, H]` in the type of a forward pass."""

    def one(values: jax.Array, scale: jax.Array | None) -> jax.Array:
        wide = values.astype(jnp.float32) * (1.0 if scale is None else scale[..., None])
        return wide.astype(dtype).swapaxes(1, 2)

    return one(slots.k_BKSH, slots.k_scale_BKS), one(slots.v_BKSH, slots.v_scale_BKS)
