"""The pure functions that decoder families share: norm, rotary embedding, attention of whole rows, feed-forward."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from s1jax.parallel.axes import Weight, einsum


def param(letters: str, shape: tuple[int, ...], rngs: nnx.Rngs, *, scale: float | None = None) -> nnx.Param:
    """A float32 parameter that carries its letters.

    Args:
      scale: standard deviation of a normal initialisation; None for ones, 0.0 for zeros.
    """
    if scale is None:
        value = jnp.ones(shape, jnp.float32)
    elif scale == 0.0:
        value = jnp.zeros(shape, jnp.float32)
    else:
        value = nnx.initializers.normal(scale)(rngs.params(), shape, jnp.float32)
    return nnx.Param(value, letters=letters)


@jax.named_scope("norm")
def rms_norm(x: jax.Array, weight_D: nnx.Param, eps: float) -> jax.Array:
    """Root-mean-square normalisation over the last dimension, in float32 (bf16 loses the small mean of squares)."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return wide.astype(x.dtype) * weight_D.get_value().astype(x.dtype)


def rotary_angles(positions_BT: jax.Array, inverse: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine `[B, T, H/2]`, float32."""
    angle = positions_BT[..., None].astype(jnp.float32) * inverse
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate the two halves of the last dimension of `x` `[B, T, heads..., H]` (the half-split convention)."""
    middle = (1,) * (x.ndim - 3)
    cos = cos.reshape(*cos.shape[:2], *middle, cos.shape[-1])
    sin = sin.reshape(*sin.shape[:2], *middle, sin.shape[-1])
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def attention(q_BTKGH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """Attention of whole rows in plain XLA; softmax in float32. `mask_BTS` is true where a query sees a key.

    Over a mesh the caller places the keys: each device needs all of time for the heads that it has.
    Heads stand before time, so that no array of scores is transposed. A query that sees nothing (padding) gets the mean
    of all values, which is finite and never read.
    """
    q_BKGTH, k_BKSH, v_BKSH = (jnp.moveaxis(x, 1, axis) for x, axis in ((q_BTKGH, 3), (k_BSKH, 2), (v_BSKH, 2)))
    score_BKGTS = jnp.einsum("BKGTH,BKSH->BKGTS", q_BKGTH, k_BKSH, preferred_element_type=jnp.float32)
    score_BKGTS = score_BKGTS * (1.0 / math.sqrt(q_BTKGH.shape[-1]))
    score_BKGTS = jnp.where(mask_BTS[:, None, None], score_BKGTS, jnp.finfo(jnp.float32).min)
    weight_BKGTS = jax.nn.softmax(score_BKGTS, axis=-1).astype(v_BSKH.dtype)
    return jnp.moveaxis(jnp.einsum("BKGTS,BKSH->BKGTH", weight_BKGTS, v_BKSH), 3, 1)


def swiglu(x_BTD: jax.Array, gate_DF: Weight, up_DF: Weight, down_FD: Weight, place: Callable) -> jax.Array:
    """Gated feed-forward (arXiv 2002.05202)."""
    hidden_BTF = jax.nn.silu(einsum("BTD,DF->BTF", x_BTD, gate_DF)) * einsum("BTD,DF->BTF", x_BTD, up_DF)
    return einsum("BTF,FD->BTD", place(hidden_BTF, "BTF"), down_FD)
