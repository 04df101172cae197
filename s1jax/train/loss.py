"""Cross-entropy of next tokens, in float32, without ever holding the logits of a whole row.

Logits of 32,768 positions over 152,064 ids are 20 GB in float32. Here T is cut into chunks whose logits are made, used
and made again in the backward pass; V stays sharded over `tensor`.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from s1jax.axes import constrain
from s1jax.models.decoder import Model, logits
from s1jax.models.time import cut_time, nearest_divisor


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The loss.

    Attributes:
      norm: `example`, the mean over examples of the mean over their tokens (as upstream with one sequence a device);
        `token`, the mean over all loss tokens of the step.
      chunk: positions of a row whose logits exist at once; 0 for all.
    """

    norm: Literal["example", "token"] = "example"
    chunk: int = 1024


def token_losses(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Negative log-probability of each target `[B, T]`. The target's logit is found by comparison: V may be sharded."""
    logits_BTV = constrain(logits_BTV, "BTV")
    ids_V = jax.lax.broadcasted_iota(targets_BT.dtype, logits_BTV.shape, 2)
    chosen_BT = jnp.sum(jnp.where(ids_V == targets_BT[..., None], logits_BTV, 0.0), axis=-1)
    return jax.nn.logsumexp(logits_BTV, axis=-1) - chosen_BT


def weighted_loss(
    model: Model, x_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array, *, chunk: int = 0, ways: int = 1
) -> jax.Array:
    """Sum of `weights * token loss`, a float32 scalar. Positions of weight 0 do not count, whatever they hold.

    Args:
      x_BTD: hidden states after the final norm.
      chunk: positions whose logits exist at once (the nearest divisor of T below is taken); 0 for all.
      ways: how many times T is sharded. Each chunk takes an equal part of every shard, so no device waits.
    """
    T = targets_BT.shape[1]
    size = nearest_divisor(T // ways, max(1, chunk // ways)) if chunk else T // ways
    if size == T // ways:
        return jnp.sum(weights_BT * token_losses(logits(model, x_BTD), targets_BT))

    @jax.checkpoint
    def of_chunk(total: jax.Array, part: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        x_BCD, targets_BC, weights_BC = part
        losses_BC = token_losses(logits(model, constrain(x_BCD, "BTD")), targets_BC)
        return total + jnp.sum(weights_BC * losses_BC), None

    parts = tuple(cut_time(array, size, ways) for array in (x_BTD, targets_BT, weights_BT))
    return jax.lax.scan(of_chunk, jnp.zeros((), jnp.float32), parts)[0]
