"""Gradients of several micro-batches in one tree.

Were the gradients of each micro-batch added to the sum when they are complete, there would be two trees: the sum and
those of the last micro-batch. Here the backward pass of a layer adds its gradients to its slice of the sum. The sum
goes through the scan over layers beside the activations, untouched; its cotangent, which the backward pass carries from
the last layer to the first, begins as the sum so far, and each layer adds the cotangent of its parameters to its slice.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Scan = Callable[[Callable, jax.Array, Any], tuple[jax.Array, Any]]
"""Runs stacked layers as `jax.lax.scan(layer, x, (blocks, states))` does."""


@jax.custom_vjp
def _tapped(own: Any, sums: Any, layer: jax.Array) -> tuple[Any, Any]:
    """A layer's parameters and all sums, unchanged; in the backward pass the cotangents of the first are added to the
    layer's slice of the others'."""
    return own, sums


def _tapped_forward(own: Any, sums: Any, layer: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
    return (own, sums), layer


def _tapped_backward(layer: jax.Array, cotangents: tuple[Any, Any]) -> tuple[None, Any, None]:
    def add(sums: jax.Array, gradient: jax.Array) -> jax.Array:
        sliced = jax.lax.dynamic_index_in_dim(sums, layer, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(sums, sliced + gradient, layer, 0)

    gradients, sums = cotangents
    return None, jax.tree.map(add, sums, gradients), None


_tapped.defvjp(_tapped_forward, _tapped_backward)


def add_gradients(
    loss_of: Callable[[Any, Scan], tuple[jax.Array, Any]],
    trained: Any,
    sums: Any,
    letters: Any,
    *,
    layer_of: Callable[[Any, list[jax.Array]], Any],
    unroll: bool = False,
) -> tuple[jax.Array, Any]:
    """Loss of a micro-batch, and `sums` with its gradients added.

    Args:
      loss_of: `(trained, scan) -> (loss, second result of scan)`; it runs its layers by `scan`.
      trained, sums, letters: trees of one structure: parameters, float32 sums, and letters, which begin with `L` where
        layers are stacked.
      layer_of: a layer's block, from that which `scan` was given and the layer's slices of the stacked parameters.
      unroll: compile the layers one after another.
    """
    is_stacked = [name.startswith("L") for name in jax.tree.leaves(letters)]

    def parted(tree: Any) -> tuple[list[jax.Array], list[jax.Array]]:
        pairs = list(zip(jax.tree.leaves(tree), is_stacked, strict=True))
        return [x for x, is_in in pairs if is_in], [x for x, is_in in pairs if not is_in]

    def joined(stack: list[jax.Array], rest: list[jax.Array]) -> Any:
        parts = iter(stack), iter(rest)
        return jax.tree.structure(trained).unflatten([next(parts[not is_in]) for is_in in is_stacked])

    stack, rest = parted(trained)
    layers = jnp.arange(stack[0].shape[0])

    def loss(rest: list[jax.Array], stack_sums: list[jax.Array]) -> tuple[jax.Array, Any]:
        def scan(layer: Callable, x: jax.Array, inputs: Any) -> tuple[jax.Array, Any]:
            def tapped(carry: tuple[jax.Array, Any], inputs: Any) -> tuple[tuple[jax.Array, Any], Any]:
                x, sums = carry
                number, own, (block, state) = inputs
                own, sums = _tapped(own, sums, number)
                x, _ = layer(x, (layer_of(block, own), state))
                return (x, sums), None

            return jax.lax.scan(tapped, (x, stack_sums), (layers, stack, inputs), unroll=unroll)[0]

        return loss_of(joined(stack, rest), scan)

    stack_sums, rest_sums = parted(sums)
    (value, _), backward = jax.vjp(loss, rest, stack_sums)
    gradients, stack_sums = backward((jnp.ones_like(value), stack_sums))
    return value, joined(stack_sums, [jnp.add(*pair) for pair in zip(rest_sums, gradients, strict=True)])
