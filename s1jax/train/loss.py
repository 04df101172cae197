"""Cross-entropy of next tokens, in float32, without ever holding the logits of a whole row.

Logits of 32,768 positions over 152,064 ids are 20 GB in float32. Here T is cut into chunks whose logits are made, used
and made again in the backward pass. On a mesh V is sharded over all devices that share a batch, and the positions of a
chunk are gathered: were the head gathered instead, that would move more bytes in every chunk than a layer has weights.
"""

import contextlib
import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from s1jax.config import Count
from s1jax.models.decoder import Model, head
from s1jax.models.time import cut_time, nearest_divisor
from s1jax.parallel import axes
from s1jax.parallel.axes import constrain, einsum
from s1jax.parallel.mesh import LOSS


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """How the loss is normed and computed.

    Attributes:
      norm: `example`, the mean over examples of the mean over their tokens (as upstream with one sequence a device);
        `token`, the mean over all loss tokens of the step.
      chunk: positions of a row whose logits exist at once; 0 for all.
    """

    norm: Literal["example", "token"] = "example"
    chunk: Count = 1024


def token_losses(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Negative log-probability of each target `[B, T]`. The target's logit is found by comparison: V may be sharded."""
    logits_BTV = constrain(logits_BTV, "BTV")
    token_BTV = jax.lax.broadcasted_iota(targets_BT.dtype, logits_BTV.shape, 2)
    chosen_BT = jnp.sum(jnp.where(token_BTV == targets_BT[..., None], logits_BTV, 0.0), axis=-1)
    return jax.nn.logsumexp(logits_BTV, axis=-1) - chosen_BT


@jax.named_scope("loss")
def weighted_loss(
    model: Model,
    x_BTD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    chunk: int = 0,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Sum of `weights * token loss`, a float32 scalar. Positions of weight 0 do not count, whatever they hold.

    Args:
      x_BTD: hidden states after the final norm.
      chunk: positions whose logits exist at once (the nearest divisor of T below is taken); 0 for all.
      mesh: over which the batch is sharded. Each chunk takes an equal part of every shard of T, so no device waits.
    """
    letters, weight = head(model)
    T, V = targets_BT.shape[1], model.config.V
    ways = 1 if mesh is None else mesh.shape["context"]
    size = nearest_divisor(T // ways, max(1, chunk // ways)) if chunk else T // ways
    assert isinstance(weight, jax.Array), "in training the head is neither quantized nor adapted"
    with _by_vocabulary(mesh, V):
        weight = constrain(weight, letters)

    def of_chunk(total: jax.Array, part: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        x_BTD = constrain(part[0], "BTD")
        with _by_vocabulary(mesh, V):
            x_BTD, targets_BT, weights_BT = (constrain(x, "BTD"[: x.ndim]) for x in (x_BTD, *part[1:]))
            logits_BTV = einsum(f"BTD,{letters}->BTV", x_BTD, weight, accumulate=jnp.float32)
            return total + jnp.sum(weights_BT * token_losses(logits_BTV, targets_BT)), None

    zero = jnp.zeros((), jnp.float32)
    if size == T // ways:
        return of_chunk(zero, (x_BTD, targets_BT, weights_BT))[0]
    parts = tuple(cut_time(array, size, ways) for array in (x_BTD, targets_BT, weights_BT))
    return jax.lax.scan(jax.checkpoint(of_chunk), zero, parts)[0]


def _by_vocabulary(mesh: Mesh | None, V: int) -> contextlib.AbstractContextManager[None]:
    """Within this context logits are sharded over V alone, if the mesh divides it."""
    if mesh is None or mesh.size == 1 or V % (mesh.size // mesh.shape["data"]):
        return contextlib.nullcontext()
    return axes.placed(mesh, LOSS)
