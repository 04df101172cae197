"""Attention kernels for whole rows on one device: splash on TPU, cuDNN on GPU. All causal; most keep segments apart.

`rows` below is `attention.Segments`. Padding (segment 0) is made zero around the cuDNN kernels, which leave what they
do not compute as it was in memory, in the output and in the gradients.
"""

import functools
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp

OFFSETS_MODULE = "jax._src.cudnn.fused_attention_stablehlo"
OFFSETS_ARGUMENTS = ("query", "key", "value", "q_seqlen", "kv_seqlen", "q_offsets", "kv_offsets", "scale", "mask_type")


def splash(
    q_BTKGH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, rows: Any, *, interpret: bool = False
) -> jax.Array:
    """The TPU's splash attention. T must be a multiple of 128.

    Raises:
      ValueError: T is not a multiple of 128.
    """
    import jax.experimental.pallas.ops.tpu.splash_attention as kernels

    B, T, K, G, H = q_BTKGH.shape
    block = next((size for size in (512, 256, 128) if T % size == 0), None)
    if block is None:
        raise ValueError(f"splash attention needs rows of a multiple of 128 tokens, not {T}; set packing.multiple=128")
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    blocks: Any = {f"block_{name}": block for name in names}
    sizes = kernels.BlockSizes(**blocks)
    mask = kernels.MultiHeadMask([kernels.CausalMask((T, T))] * (K * G))
    kernel: Any = kernels.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)
    q = jnp.moveaxis(q_BTKGH * (1.0 / math.sqrt(H)), 1, 3).reshape(B, K * G, T, H)
    k, v = jnp.moveaxis(k_BTKH, 1, 2), jnp.moveaxis(v_BTKH, 1, 2)
    ids = kernels.SegmentIds(rows.segments_BT, rows.segments_BT)
    out = jax.vmap(kernel)(q, k, v, ids)
    return jnp.moveaxis(out.reshape(B, K, G, T, H), 3, 1)


splash_interpreted = functools.partial(splash, interpret=True)


def cudnn_causal(q_BTKGH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, rows: Any) -> jax.Array:
    """cuDNN's causal attention for rows of one example each: padding follows it, so nothing that counts sees it."""
    B, T, K, G, H = q_BTKGH.shape
    out = jax.nn.dot_product_attention(
        q_BTKGH.reshape(B, T, K * G, H), k_BTKH, v_BTKH, is_causal=True, implementation="cudnn"
    )
    return out.reshape(q_BTKGH.shape)


def offsets_refusal() -> str | None:
    """Why cuDNN's packed form cannot be called here, or None. It is private to JAX, so its signature is checked."""
    try:
        function, mask_type = _offsets_function()
        parameters = inspect.signature(function).parameters
    except (ImportError, AttributeError) as error:
        return f"this JAX has no {OFFSETS_MODULE} as it was ({error})"
    if missing := [name for name in OFFSETS_ARGUMENTS if name not in parameters]:
        return f"this JAX's {OFFSETS_MODULE}.dot_product_attention takes no {', '.join(missing)}"
    return None if hasattr(mask_type, "PADDING_CAUSAL") else f"{OFFSETS_MODULE} has no mask PADDING_CAUSAL"


def _offsets_function() -> tuple[Any, Any]:
    import importlib

    module = importlib.import_module(OFFSETS_MODULE)
    return module.dot_product_attention, module.MaskType


def cudnn_offsets(q_BTKGH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, rows: Any) -> jax.Array:
    """cuDNN's attention over packed rows, by the offset and length of each segment. Hopper or later."""
    function, mask_type = _offsets_function()
    B, T, K, G, H = q_BTKGH.shape
    starts_BN, lengths_BN = segment_bounds(rows.segments_BT, rows.max_segments)
    has_BN = lengths_BN > 0
    lengths_BN = jnp.where(has_BN, lengths_BN, -1)
    # Offsets are starts and, behind the last segment, its end; -1 where there is no segment.
    total_B = jnp.sum(rows.segments_BT > 0, axis=1)
    starts = jnp.concatenate([jnp.where(has_BN, starts_BN, -1), jnp.full((B, 1), -1, jnp.int32)], axis=1)
    count_B = jnp.sum(has_BN, axis=1)
    is_end = jnp.arange(rows.max_segments + 1) == count_B[:, None]
    offsets = jnp.where(is_end, total_B[:, None], starts).astype(jnp.int32)
    q, k, v = (_without_padding(x, rows.segments_BT) for x in (q_BTKGH, k_BTKH, v_BTKH))
    out = function(
        q.reshape(B, T, K * G, H),
        k,
        v,
        q_seqlen=lengths_BN,
        kv_seqlen=lengths_BN,
        q_offsets=offsets,
        kv_offsets=offsets,
        scale=1.0 / math.sqrt(H),
        mask_type=mask_type.PADDING_CAUSAL,
    )
    return _without_padding(out.reshape(q_BTKGH.shape), rows.segments_BT)


def cudnn_gathered(
    q_BTKGH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, rows: Any, *, implementation: Any = "cudnn"
) -> jax.Array:
    """Public functions alone: segments are gathered into rows of their own, attended with their lengths, put back."""
    B, T, K, G, H = q_BTKGH.shape
    N, A = rows.max_segments, min(rows.max_segment_length, T)
    starts_BN, lengths_BN = segment_bounds(rows.segments_BT, N)
    index_BNA = jnp.minimum(starts_BN[:, :, None] + jnp.arange(A), T - 1)

    def gather(x: jax.Array) -> jax.Array:
        rows_of = jax.vmap(lambda x_T, index_NA: x_T[index_NA])(x, index_BNA)
        return rows_of.reshape(B * N, A, *x.shape[2:])

    q, k, v = (gather(_without_padding(x, rows.segments_BT)) for x in (q_BTKGH, k_BTKH, v_BTKH))
    lengths = lengths_BN.reshape(B * N)
    out = jax.nn.dot_product_attention(
        q.reshape(B * N, A, K * G, H),
        k,
        v,
        is_causal=True,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    ).reshape(B, N, A, K, G, H)
    out = jnp.where((jnp.arange(A) < lengths_BN[:, :, None])[..., None, None, None], out, 0)
    segment_BT = jnp.maximum(rows.segments_BT - 1, 0)
    back = jax.vmap(lambda out_NA, segment_T, position_T: out_NA[segment_T, position_T])
    return _without_padding(back(out, segment_BT, jnp.minimum(rows.positions_BT, A - 1)), rows.segments_BT)


def segment_bounds(segments_BT: jax.Array, max_segments: int) -> tuple[jax.Array, jax.Array]:
    """Start and length `[B, N]` of segments 1..N of each row, int32; length 0 where there is none."""
    is_BNT = segments_BT[:, None, :] == jnp.arange(1, max_segments + 1)[:, None]
    return jnp.argmax(is_BNT, axis=2).astype(jnp.int32), jnp.sum(is_BNT, axis=2, dtype=jnp.int32)


def _without_padding(x: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """Zeros at padding; so are the gradients there, whatever a kernel wrote."""
    is_real = (segments_BT > 0).reshape(*segments_BT.shape, *(1,) * (x.ndim - 2))
    return jnp.where(is_real, x, 0)
