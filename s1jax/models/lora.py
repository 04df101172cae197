"""Low-rank adapters (arXiv 2106.09685): a small tree of their own beside a model that does not change.

What is trained is `Adapters`; `apply` gives a model that computes with them, so a step differentiates

    loss(apply(model, adapters, config))   with respect to `adapters`

and optimizer, checkpoints and shardings see `Adapters` where they saw the model.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from s1jax.config import BadInput, Positive, PositiveNumber
from s1jax.models.config import DecoderConfig
from s1jax.models.decoder import Decoder, named
from s1jax.parallel.axes import Adapted

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
    """Low-rank adapters of the matrices of each layer.

    Attributes:
      rank: of the two factors, R.
      alpha: the low-rank term is scaled by `alpha / rank`.
      targets: which matrices have one, keys of `TARGETS`.
    """

    rank: Positive = 16
    alpha: PositiveNumber = 32.0
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


def shapes(config: DecoderConfig, lora: LoraConfig) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes of `down` and `up` of each target."""
    size = {letter: getattr(config, letter) for letter in "DKGHFL"} | {"R": lora.rank}
    made = {}
    for name in lora.targets:
        inputs, outputs = TARGETS[name]
        down, up = (tuple(size[letter] for letter in text) for text in (f"L{inputs}R", f"LR{outputs}"))
        made[name] = (down, up)
    return made


def sizes(config: DecoderConfig, lora: LoraConfig) -> dict[str, int]:
    """Parameters of each target."""
    return {name: math.prod(down) + math.prod(up) for name, (down, up) in shapes(config, lora).items()}


def new(config: DecoderConfig, lora: LoraConfig, key: jax.Array) -> Adapters:
    """Adapters that change nothing yet: `down` uniform within 1/sqrt(inputs), as PEFT has it, `up` zero."""
    check(lora)
    made = shapes(config, lora)

    def adapter(name: str, key: jax.Array) -> Adapter:
        down, up = made[name]
        bound = 1 / math.sqrt(math.prod(down[1:-1]))
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
    """The stacked model with the adapters added into its weights, each in its own type.

    Layer by layer, in place where the model is donated: a float32 copy of a whole stack would not fit beside it.
    """
    values = dict(named(model))
    for name, adapter in adapters.items():
        values[f"blocks.{name}"] = _add_in(values[f"blocks.{name}"], adapter, TARGETS[name], lora.scale)
    return jax.tree.unflatten(jax.tree.structure(model), list(values.values()))


def _add_in(stack: jax.Array, adapter: Adapter, target: tuple[str, str], scale: float) -> jax.Array:
    inputs, outputs = target

    def add(layer: jax.Array, stack: jax.Array) -> jax.Array:
        term = jnp.einsum(f"{inputs}R,R{outputs}->{inputs}{outputs}", adapter.down[layer], adapter.up[layer])
        return stack.at[layer].set((stack[layer] + scale * term).astype(stack.dtype))

    return jax.lax.fori_loop(0, stack.shape[0], add, stack)
