"""AdamW with warm-up and cosine decay, as upstream's trainer has it (torch AdamW under transformers' Trainer)."""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from s1jax.config import Amount, BadInput, Count, Decay, Fraction, PositiveNumber

Dtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW. The defaults are upstream's (simplescaling/s1@77272c6 train/sft.sh and the library's own).

    Attributes:
      learning_rate: the peak.
      warmup: share of all steps in which the rate rises; the first update has learning rate 0.
      warmup_steps: those steps outright, in place of `warmup`.
      final: share of the peak that the cosine ends in.
      b1: decay of Adam's first moment.
      b2: decay of Adam's second moment.
      eps: added to the root of Adam's second moment.
      weight_decay: on every parameter but biases (norm weights decay too, as upstream's do).
      clip: largest global norm of the gradient; None for no limit.
      mu: type of the first moment.
      nu: type of the second moment.
    """

    learning_rate: Amount = 1e-5
    warmup: Fraction = 0.05
    warmup_steps: Count | None = None
    final: Fraction = 0.0
    b1: Decay = 0.9
    b2: Decay = 0.95
    eps: PositiveNumber = 1e-8
    weight_decay: Amount = 1e-4
    clip: PositiveNumber | None = 1.0
    mu: Dtype = "float32"
    nu: Dtype = "float32"


def warmup_steps(config: OptimizerConfig, steps: int) -> int:
    """Updates before the peak: a share is rounded up (5 % of 315 is 16). Raises BadInput when it exceeds `steps`."""
    warmup = math.ceil(config.warmup * steps) if config.warmup_steps is None else config.warmup_steps
    if not 0 <= warmup <= steps:
        raise BadInput(f"optimizer: {warmup} warm-up steps of {steps} in all; set optimizer.warmup between 0 and 1")
    return warmup


def learning_rate(config: OptimizerConfig, steps: int, step: jax.Array) -> jax.Array:
    """Learning rate of the update after `step` others: linear from 0, then half a cosine to `final` of the peak.

    The cosine is written as a squared sine of what is left: `1 + cos` loses three digits in float32 near the end.
    """
    warmup = warmup_steps(config, steps)
    rising = step.astype(jnp.float32) / max(1, warmup)
    left = (steps - step).astype(jnp.float32) / max(1, steps - warmup)
    falling = config.final + (1 - config.final) * jnp.square(jnp.sin(0.5 * jnp.pi * jnp.maximum(left, 0.0)))
    return config.learning_rate * jnp.where(step < warmup, rising, falling)


def decays(model: Any) -> Any:
    """The tree of booleans: which parameters decay (all whose name does not hold "bias")."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "bias" not in jax.tree_util.keystr(path), model)


def clip(largest: float | None) -> optax.GradientTransformation:
    """Scale gradients by `min(1, largest / (norm + 1e-6))`, as torch's `clip_grad_norm_` does."""

    def update(grads: Any, params: Any) -> Any:
        if largest is None:
            return grads
        scale = jnp.minimum(1.0, largest / (optax.tree.norm(grads) + 1e-6))
        return jax.tree.map(lambda g: g * scale, grads)

    return optax.stateless(update)


def with_nu(inner: optax.GradientTransformation, dtype: Any) -> optax.GradientTransformation:
    """Keep Adam's second moment in `dtype` between updates (optax has this for the first moment only)."""

    def cast(state: Any, to: Any) -> Any:
        return state._replace(nu=jax.tree.map(lambda x: x.astype(to), state.nu))

    def update(updates: Any, state: Any, params: Any = None, **_: Any) -> tuple[Any, Any]:
        updates, state = inner.update(updates, cast(state, jnp.float32), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(lambda params: cast(inner.init(params), dtype), update)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip, Adam, decoupled decay, learning rate, in torch's order."""
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=jnp.dtype(config.mu))
    return optax.chain(
        clip(config.clip),
        adam if config.nu == "float32" else with_nu(adam, jnp.dtype(config.nu)),
        optax.add_decayed_weights(config.weight_decay, mask=decays),
        optax.scale_by_learning_rate(lambda step: learning_rate(config, steps, jnp.asarray(step))),
    )


def init(config: OptimizerConfig, steps: int, model: Any) -> Any:
    """The optimizer's state before the first update."""
    return make_optimizer(config, steps).init(model)


def update(config: OptimizerConfig, steps: int, grads: Any, state: Any, model: Any) -> tuple[Any, Any]:
    """One update: the new model and the new state."""
    changes, state = make_optimizer(config, steps).update(grads, state, model)
    return optax.apply_updates(model, changes), state
