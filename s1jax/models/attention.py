"""Attention of training: causal, within the segments of packed rows, by backend and on a mesh.

A row of a batch holds examples one after another (segments 1, 2, ...; 0 behind the last). Every position sees the keys
of its own segment up to its own position. A backend that cannot keep segments apart refuses packed rows.

On a mesh whose `context` axis shards T, a kernel still needs whole rows. Where `tensor x context` divides the kv heads,
heads are exchanged for time (all-to-all): each device then has whole rows of some heads, so the causal half is shared
evenly. Otherwise keys and values are gathered, which only the XLA backend does, and time is dealt to the devices in
stripes: a device has a piece of the beginning, of the end and of all between, so that all have as many keys to look at.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from s1jax.config import BadInput
from s1jax.models import attention_kernels, layers
from s1jax.models.decoder import Attend, DecoderConfig
from s1jax.models.time import cut_time, join_time, nearest_divisor
from s1jax.parallel.axes import constrain
from s1jax.parallel.mesh import ACTIVATION

SCORES = 1 << 26  # float32 scores that XLA attention holds per device at once
ROUNDS, ROUND = 8, 128  # XLA attention takes the queries of a row in up to 8 rounds of at least 128 positions
OUTPUT = "attention"  # name of the output, for policies of recomputation
ROWS = P(ACTIVATION["B"], None)
HEADS = P(ACTIVATION["B"], None, ("tensor", "context"))


@dataclasses.dataclass(frozen=True)
class Segments:
    """What a batch says about its rows.

    Attributes:
      segments_BT: 1, 2, ... for the examples of a row; 0 for padding.
      positions_BT: positions in their segments.
      max_segments, max_segment_length: upper bounds on the segments of a row and on a segment's length; static.
      stripes: in how many time was dealt to the devices of `context` (`in_stripes`); 1 for one piece each.
    """

    segments_BT: jax.Array
    positions_BT: jax.Array
    max_segments: int
    max_segment_length: int
    stripes: int = 1


@dataclasses.dataclass(frozen=True)
class Backend:
    """One line of `BACKENDS`.

    Attributes:
      kernel: `(q_BTKGH, k_BTKH, v_BTKH, rows) -> o_BTKGH` on whole rows of one device; None for XLA.
      keeps_segments: examples of one row do not see each other.
      platform: where it runs, None for anywhere.
      dtypes: compute types it takes.
    """

    kernel: Callable[[jax.Array, jax.Array, jax.Array, Segments], jax.Array] | None
    keeps_segments: bool
    platform: str | None
    dtypes: tuple[str, ...]


BACKENDS: dict[str, Backend] = {
    "xla": Backend(None, True, None, ("float32", "bfloat16")),
    "splash": Backend(attention_kernels.splash, True, "tpu", ("float32", "bfloat16")),
    "splash_interpreted": Backend(attention_kernels.splash_interpreted, True, None, ("float32", "bfloat16")),
    "cudnn": Backend(attention_kernels.cudnn_offsets, True, "gpu", ("bfloat16",)),
    "cudnn_gathered": Backend(attention_kernels.cudnn_gathered, True, "gpu", ("bfloat16",)),
    "cudnn_causal": Backend(attention_kernels.cudnn_causal, False, "gpu", ("bfloat16",)),
}


def choose(name: str, config: DecoderConfig, mesh: Mesh, *, dtype: str, is_packed: bool) -> str:
    """The backend to use: `name`, or for `auto` the fastest that can.

    Raises:
      BadInput: `name` is unknown, does not run here, or would let the examples of a packed row see each other.
    """
    platform = mesh.devices.flat[0].platform
    if name == "auto":
        first = {"tpu": ["splash"], "gpu": ["cudnn", "cudnn_gathered"] if is_packed else ["cudnn_causal"]}
        fits = (n for n in first.get(platform, []) if _refusal(n, config, mesh, dtype, is_packed, platform) is None)
        return next(fits, "xla")
    if name not in BACKENDS:
        raise BadInput(f"attention={name!r} is not known; use auto or one of {', '.join(BACKENDS)}")
    if reason := _refusal(name, config, mesh, dtype, is_packed, platform):
        raise BadInput(f"attention={name}: {reason}")
    return name


def _refusal(name: str, config: DecoderConfig, mesh: Mesh, dtype: str, is_packed: bool, platform: str) -> str | None:
    backend = BACKENDS[name]
    if is_packed and not backend.keeps_segments:
        return "it does not keep the examples of a packed row apart; use cudnn, or packing.enabled=false"
    if backend.platform not in (None, platform):
        return f"it runs on a {backend.platform}, this is a {platform}; use auto"
    if dtype not in backend.dtypes:
        return f"it takes {' or '.join(backend.dtypes)}, dtype is {dtype}; use auto or another dtype"
    if backend.kernel is not None and not exchanges_heads(config.K, mesh):
        ways = mesh.shape["tensor"] * mesh.shape["context"]
        return f"tensor x context = {ways} does not divide the {config.K} kv heads; use smaller ones, or xla"
    if name == "cudnn" and (reason := attention_kernels.offsets_refusal()):
        return f"{reason}; use cudnn_gathered"
    return None


def exchanges_heads(kv_heads: int, mesh: Mesh) -> bool:
    """Whether each device can have whole rows of some kv heads."""
    return kv_heads % (mesh.shape["tensor"] * mesh.shape["context"]) == 0


def stripes(backend: str, kv_heads: int, length: int, mesh: Mesh | None) -> int:
    """In how many stripes rows of `length` are to be dealt to the devices of `context`; 1 leaves them in order."""
    if mesh is None or mesh.shape["context"] == 1 or backend != "xla" or exchanges_heads(kv_heads, mesh):
        return 1
    return _rounds(length // mesh.shape["context"], length)


def in_stripes(x_BT: jax.Array, count: int, mesh: Mesh) -> jax.Array:
    """Positions dealt so that of `count` equal parts of each row every device of `context` has one piece, in turn."""
    ways = mesh.shape["context"]
    B, T = x_BT.shape
    x_BT = _placed(x_BT, mesh, ROWS).reshape(B, count, ways, T // count // ways)
    return constrain(jnp.swapaxes(x_BT, 1, 2).reshape(B, T), "BT")


def _rounds(divided: int, length: int) -> int:
    """Into how many rounds `length` queries are cut; a divisor of `divided`."""
    return nearest_divisor(divided, min(ROUNDS, max(1, length // ROUND)))


def segmented(backend: str, rows: Segments, mesh: Mesh | None = None) -> Attend:
    """The attention of a batch for `decoder.forward`.

    Args:
      backend: key of `BACKENDS`, checked by `choose`.
      mesh: over which the batch is sharded; None for one device.
    """
    kernel = BACKENDS[backend].kernel

    def attend(q_BTKGH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        if kernel is None:
            out_BTKGH = _xla(q_BTKGH, k_BTKH, v_BTKH, rows, mesh)
        elif mesh is None or mesh.size == 1:
            out_BTKGH = kernel(q_BTKGH, k_BTKH, v_BTKH, rows)
        else:
            out_BTKGH = _on_mesh(kernel, q_BTKGH, k_BTKH, v_BTKH, rows, mesh)
        return checkpoint_name(out_BTKGH, OUTPUT), state

    return attend


def _on_mesh(kernel: Callable, q: jax.Array, k: jax.Array, v: jax.Array, rows: Segments, mesh: Mesh) -> jax.Array:
    def local(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, positions: jax.Array) -> jax.Array:
        return kernel(q, k, v, dataclasses.replace(rows, segments_BT=segments, positions_BT=positions))

    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=(HEADS, HEADS, HEADS, ROWS, ROWS), out_specs=HEADS, check_vma=False
    )
    return constrain(mapped(q, k, v, rows.segments_BT, rows.positions_BT), "BTKGH")


def _xla(q_BTKGH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, rows: Segments, mesh: Mesh | None) -> jax.Array:
    """Exact in float32. Queries in rounds, each with the keys up to its end alone, which nearly halves the work."""
    T, K = q_BTKGH.shape[1:3]
    is_exchanged = mesh is None or exchanges_heads(K, mesh)
    ways = 1 if mesh is None or is_exchanged else mesh.shape["context"]
    rounds = _rounds(T, T) if ways == 1 else rows.stripes
    held = (rows.segments_BT, rows.positions_BT)
    keys = HEADS if is_exchanged else P(ACTIVATION["B"], None, "tensor")
    k_BSKH, v_BSKH = (_in_order(_placed(x, mesh, keys), rounds, ways) for x in (k_BTKH, v_BTKH))
    segments_BS, positions_BS = (_in_order(_placed(x, mesh, ROWS), rounds, ways) for x in held)
    if is_exchanged:
        q_BTKGH, held = _placed(q_BTKGH, mesh, HEADS), (segments_BS, positions_BS)
    parts = zip(*(cut_time(x, T // ways // rounds, ways) for x in (q_BTKGH, *held)), strict=True)
    out = []
    for number, queries in enumerate(parts, 1):
        seen = slice(0, number * T // rounds)
        of = functools.partial(
            _attend_queries, (k_BSKH[:, seen], v_BSKH[:, seen], segments_BS[:, seen], positions_BS[:, seen])
        )
        out.append(_in_chunks(of, queries, number * T // rounds, ways, 1 if mesh is None else mesh.size))
    return constrain(join_time(jnp.stack(out), ways) if rounds > 1 else out[0], "BTKGH")


def _attend_queries(keys: tuple[jax.Array, ...], queries: tuple[jax.Array, ...]) -> jax.Array:
    k_BSKH, v_BSKH, segments_BS, positions_BS = keys
    q_BTKGH, segments_BT, positions_BT = queries
    return layers.attention(q_BTKGH, k_BSKH, v_BSKH, visible(segments_BT, positions_BT, segments_BS, positions_BS))


def _in_chunks(of: Callable, queries: tuple[jax.Array, ...], keys: int, ways: int, devices: int) -> jax.Array:
    """`of(queries)`; piece by piece, recomputed in the backward pass, where the scores would be too many."""
    B, T, K, G, _ = queries[0].shape
    most = max(1, SCORES * devices // (B * K * G * keys))
    chunk = nearest_divisor(T // ways, max(1, most // ways))
    if chunk == T // ways:
        return of(queries)
    parts = tuple(cut_time(x, chunk, ways) for x in queries)
    return join_time(jax.lax.map(jax.checkpoint(of), parts), ways)


def _in_order(x: jax.Array, stripes: int, ways: int) -> jax.Array:
    """Whole rows that were dealt in stripes, in the order of time again."""
    if ways == 1 or stripes == 1:
        return x
    parts = cut_time(x, x.shape[1] // ways // stripes, ways)
    return jnp.moveaxis(parts, 0, 1).reshape(x.shape)


def visible(
    segments_BT: jax.Array, positions_BT: jax.Array, segments_BS: jax.Array, positions_BS: jax.Array
) -> jax.Array:
    """Mask `[B, T, S]`: the key is in the query's segment and not after it."""
    same = segments_BT[:, :, None] == segments_BS[:, None, :]
    return same & (positions_BT[:, :, None] >= positions_BS[:, None, :])


def _placed(x: jax.Array, mesh: Mesh | None, spec: P) -> jax.Array:
    if mesh is None or mesh.size == 1:
        return x
    sharding = NamedSharding(mesh, spec)
    return (
        jax.reshard(x, sharding)
        if AxisType.Explicit in mesh.axis_types
        else (jax.lax.with_sharding_constraint(x, sharding))
    )
