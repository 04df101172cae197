"""What the backward pass recomputes and what is kept, or kept on the host, by name."""

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

from s1jax.models.attention import OUTPUT

RESIDUAL = "residual"

Remat = Callable[[Callable], Callable]


def _named(layer: Callable) -> Callable:
    """The layer with its input named, so that a policy can speak of it."""

    def named(x_BTD: jax.Array, *rest: object) -> object:
        return layer(checkpoint_name(x_BTD, RESIDUAL), *rest)

    return named


def _policy(policy: Callable) -> Remat:
    return lambda layer: jax.checkpoint(_named(layer), policy=policy)


_policies = jax.checkpoint_policies
_offload = _policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[RESIDUAL],
    offload_src="device",
    offload_dst="pinned_host",
)

# From the most memory to the least. `offload` keeps the layers' inputs in the host's memory and recomputes the rest.
REMAT: dict[str, Remat | None] = {
    "none": None,
    "dots": _policy(_policies.dots_with_no_batch_dims_saveable),
    "attention": _policy(_policies.save_only_these_names(OUTPUT)),
    "full": _policy(_policies.nothing_saveable),
    "offload": _policy(_offload),
}
