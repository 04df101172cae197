"""Low-rank adapters (arXiv 2106.09685): a small tree of their own beside a model that does not change.

What is trained is `Adapters`; `apply` gives a model that computes with them, so a step differentiates

    loss(apply(model, adapters, config))   with respect to `adapters`

and optimizer, checkpoints and shardings see `Adapters` where they saw the model.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from s1jax.axes import Adapted
from s1jax.config import BadInput
from s1jax.models.config import DecoderConfig
from s1jax.models.decoder import Decoder, named

# Parameter -> (letters that a product sums over, the others).
TARGETS = {
    "q": ("D", "KGH"),
    "k": ("D", "KH"),
    "v": ("D", "KH"),
    "o": ("KGH", "D"),
    "gate": ("D", "F"),
    "up": ("D", "F"),
    "down": ("F", "D"),
}


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Rank R, the scale `alpha / rank` of the low-rank term, and which matrices of a layer have one."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = tuple(TARGETS)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapter:
    """`down` [L, inputs..., R] and `up` [L, R, outputs...] of one target in all layers, float32."""

    down: jax.Array
    up: jax.Array


Adapters = dict[str, Adapter]
"""Target -> adapter."""


def check(lora: LoraConfig) -> None:
    """Raises BadInput for a rank below 1, no target, or one that is not a matrix of a layer."""
    if lora.rank < 1:
        raise BadInput(f"lora.rank={lora.rank}; it must be at least 1")
    if not lora.targets:
        raise BadInput(f"lora.targets is empty; name some of {', '.join(TARGETS)}")
    for target in lora.targets:
        if target not in TARGETS:
            raise BadInput(f"lora.targets names {target!r}; it may name {', '.join(TARGETS)}")


def letters(lora: LoraConfig) -> dict[str, Adapter]:
    """The letters of each leaf, for `mesh.param_sharding`."""
    return {name: Adapter(f"L{TARGETS[name][0]}R", f"LR{TARGETS[name][1]}") for name in lora.targets}  # pyright: ignore


def new(config: DecoderConfig, lora: LoraConfig, key: jax.Array) -> Adapters:
    """Adapters that change nothing yet: `down` uniform within 1/sqrt(inputs), as PEFT has it, `up` zero."""
    check(lora)
    sizes = {letter: getattr(config, letter) for letter in "DKGHFL"} | {"R": lora.rank}

    def adapter(name: str, key: jax.Array) -> Adapter:
        inputs, outputs = TARGETS[name]
        bound = 1 / math.sqrt(math.prod(sizes[letter] for letter in inputs))
        down, up = (tuple(sizes[letter] for letter in text) for text in (f"L{inputs}R", f"LR{outputs}"))
        return Adapter(jax.random.uniform(key, down, jnp.float32, -bound, bound), jnp.zeros(up, jnp.float32))

    keys = jax.random.split(key, len(lora.targets))
    return {name: adapter(name, key) for name, key in zip(lora.targets, keys, strict=True)}


def apply(model: Decoder, adapters: Adapters, lora: LoraConfig) -> Decoder:
    """The stacked model with adapters beside its weights. Nothing is copied."""
    values = {
        path: Adapted(value, adapter.down, adapter.up, lora.scale)
        if (adapter := adapters.get(path.removeprefix("blocks.")))
        else value
        for path, value in named(model).items()
    }
    return jax.tree.unflatten(jax.tree.structure(model), list(values.values()))


def merge(model: Decoder, adapters: Adapters, lora: LoraConfig) -> Decoder:
    """The stacked model with the adapters added into its weights, each in its own type."""
    values = dict(named(model))
    for name, adapter in adapters.items():
        (inputs, outputs), path = TARGETS[name], f"blocks.{name}"
        term = jnp.einsum(f"L{inputs}R,LR{outputs}->L{inputs}{outputs}", adapter.down, adapter.up)
        values[path] = (values[path].astype(jnp.float32) + lora.scale * term).astype(values[path].dtype)
    return jax.tree.unflatten(jax.tree.structure(model), list(values.values()))
