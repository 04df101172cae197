"""A model's weights as decoding wants them: layers apart, in the type asked for."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from s1jax.axes import Quantized
from s1jax.models.decoder import Decoder, Unstacked, letters, unstack

# Dimensions that a product with the weight sums over; what is left has a scale each.
CONTRACTED = {"VD": "D", "DV": "D", "DKGH": "D", "DKH": "D", "KGHD": "KGH", "DF": "D", "FD": "F"}


def prepare(model: Decoder | Unstacked, dtype: str) -> Unstacked:
    """The model with separate layers, its weights in `dtype`: `float32`, `bfloat16`, or `int8` with scales.

    In int8 the matrices have a float32 scale per output channel; norms and biases keep their type.
    """
    if isinstance(model, Decoder):
        model = unstack(model)
    if dtype == "int8":
        return jax.tree.map(_quantized, model, letters(model))
    return jax.tree.map(lambda x: x.astype(dtype), model)


def _quantized(weight: jax.Array, names: Any) -> Any:
    return _quantize(weight, names) if names in CONTRACTED else weight


@functools.partial(jax.jit, static_argnames=("names",))
def _quantize(weight: jax.Array, names: str) -> Quantized:
    wide = weight.astype(jnp.float32)
    summed = tuple(axis for axis, letter in enumerate(names) if letter in CONTRACTED[names])
    scale = jnp.max(jnp.abs(wide), axis=summed, keepdims=True) / 127
    return Quantized(jnp.round(wide / jnp.where(scale > 0, scale, 1)).astype(jnp.int8), scale)
