"""A model's weights as decoding wants them: layers apart, in the type asked for."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from s1jax.models.decoder import Decoder, Unstacked, letters, unstack
from s1jax.parallel.axes import Quantized
from s1jax.parallel.mesh import param_sharding

# Dimensions that a product with the weight sums over; what is left has a scale each.
CONTRACTED = {"VD": "D", "DV": "D", "DKGH": "D", "DKH": "D", "KGHD": "KGH", "DF": "D", "FD": "F"}


def prepare(model: Decoder | Unstacked, dtype: str, mesh: Mesh | None) -> Unstacked:
    """The model with separate layers, its weights in `dtype`: `float32`, `bfloat16`, or `int8` with scales.

    In int8 the matrices have a float32 scale per output channel; norms and biases keep their type. On a mesh every
    weight is placed by the parameter rules.

    Raises:
      BadInput: the mesh does not divide a weight.
    """
    if isinstance(model, Decoder):
        model = unstack(model)
    names: Any = letters(model)
    if mesh is None or mesh.size == 1:
        placed: Any = jax.device_put(model, jax.local_devices()[0] if mesh is None else mesh.devices.item())
    else:
        placed = jax.tree.map(lambda x, name: jax.device_put(x, param_sharding(name, x.shape, mesh)), model, names)
    return typed(placed, names, dtype)


def typed(model: Unstacked, names: Any, dtype: str) -> Unstacked:
    """The weights in `dtype`; `names` are the letters of each (`s1jax.models.decoder.letters`)."""
    if dtype == "int8":
        return jax.tree.map(lambda x, name: _quantize(x, name) if name in CONTRACTED else x, model, names)
    return jax.tree.map(lambda x: x.astype(dtype), model)


@functools.partial(jax.jit, static_argnames=("names",))
def _quantize(weight: jax.Array, names: str) -> Quantized:
    """Weights keep their sharding; a scale is replicated over what it sums over."""
    wide = weight.astype(jnp.float32)
    summed = tuple(axis for axis, letter in enumerate(names) if letter in CONTRACTED[names])
    scale = jnp.max(jnp.abs(wide), axis=summed, keepdims=True) / 127
    return Quantized(jnp.round(wide / jnp.where(scale > 0, scale, 1)).astype(jnp.int8), scale)
