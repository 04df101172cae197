"""The alphabet of dimensions, and the few array functions that know it.

    B batch row      T query time     S key time / cache slot
    D model          K kv head        G queries per kv head     H head width
    F feed-forward   V vocabulary     L layer                   R rank of an adapter
    N segment of a packed row         A place within a segment

and, in the automata of controls (`s1jax.control`),

    J delimiter      M match state    C class of tokens         E event          Y byte
    W recent token   X recent token that is compared            P pattern size
    Q text to put    I place in it    U pause threshold

A letter means one thing everywhere; the test suite compares the arrays of every call with their letters. The same
letters are the suffix of a variable (`x_BTD`), the einsum (`"BTD,DKGH->BTKGH"`), the declaration of a parameter, the
row of the Hugging Face layout table and the keys of the sharding rules. They name logical dimensions, never placement.
Placement is ambient: inside `placed(mesh, rules)` results are constrained by the rules, outside it
nothing happens, so a model runs on one device without knowing of meshes.
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

ALPHABET = {
    "B": "batch row",
    "T": "query time",
    "S": "key time, cache slot",
    "D": "model",
    "K": "kv head",
    "G": "queries per kv head",
    "H": "head width",
    "F": "feed-forward",
    "V": "vocabulary",
    "L": "layer",
    "R": "adapter rank",
    "N": "segment of a packed row",
    "A": "place within a segment",
    "J": "delimiter",
    "M": "match state",
    "C": "class of tokens",
    "E": "event",
    "Y": "byte",
    "W": "recent token",
    "X": "recent token that is compared",
    "P": "pattern size",
    "Q": "text to put",
    "I": "place in a text to put",
    "U": "pause threshold",
}

Rules = Mapping[str, str | tuple[str, ...]]
_PLACEMENT: contextvars.ContextVar[tuple[Mesh, Rules] | None] = contextvars.ContextVar("placement", default=None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """An int8 weight with one scale per output channel: `weight = values * scale`.

    Attributes:
      values: int8, the weight's shape.
      scale: float32, the weight's shape with 1 in every contracted dimension.
    """

    values: jax.Array
    scale: jax.Array


@functools.partial(jax.tree_util.register_dataclass, data_fields=["base", "down", "up"], meta_fields=["scale"])
@dataclasses.dataclass(frozen=True)
class Adapted:
    """A weight and a low-rank term beside it (arXiv 2106.09685): `weight = base + scale * down @ up`.

    Attributes:
      base: the weight, plain or quantized.
      down: the weight's contracted dimensions in their order, then R.
      up: R, then the weight's other dimensions in their order.
    """

    base: jax.Array | Quantized
    down: jax.Array
    up: jax.Array
    scale: float


Weight = jax.Array | Quantized | Adapted


def spec(letters: str, rules: Rules) -> P:
    """The partition spec of an array with these dimensions.

    Raises:
      ValueError: a mesh axis would shard two dimensions of one array.
    """
    entries = [rules.get(letter) for letter in letters]
    used = [axis for entry in entries if entry for axis in ((entry,) if isinstance(entry, str) else entry)]
    if len(used) != len(set(used)):
        raise ValueError(
            f"rules {dict(rules)} shard two dimensions of {letters!r} over one mesh axis; change one of them"
        )
    return P(*entries)


@contextlib.contextmanager
def placed(mesh: Mesh, rules: Rules) -> Iterator[None]:
    """Within this context `constrain` and `einsum` place their results on `mesh` by `rules`."""
    token = _PLACEMENT.set((mesh, rules))
    try:
        yield
    finally:
        _PLACEMENT.reset(token)


def constrain(x: jax.Array, letters: str) -> jax.Array:
    """`x` placed by the ambient rules (unchanged where there are none)."""
    placement = _PLACEMENT.get()
    if placement is None:
        return x
    mesh, rules = placement
    if _is_explicit(mesh):
        return jax.reshard(x, NamedSharding(mesh, spec(letters, rules)))
    # A trace is kept for all meshes of this shape: it must not name the devices of the first one.
    where = mesh.abstract_mesh if isinstance(x, Tracer) else mesh
    return jax.lax.with_sharding_constraint(x, NamedSharding(where, spec(letters, rules)))


def einsum(equation: str, x: jax.Array, weight: Weight, *, accumulate: jnp.dtype | type | None = None) -> jax.Array:
    """Contract an activation with a weight, in the activation's type.

    Args:
      equation: such as `"BTD,DKGH->BTKGH"`, in letters of the alphabet.
      x: activation; its type is the type of the product.
      weight: of any float type, or `Quantized`: then the scale is applied to the product, or `Adapted`.
      accumulate: type of the result (and of the accumulation), where it must be wider than `x`'s.
    """
    if isinstance(weight, Adapted):
        return _adapted(equation, x, weight, accumulate)
    out = equation.rpartition("->")[2]
    values = weight.values if isinstance(weight, Quantized) else weight
    product = _product(equation, x, values.astype(x.dtype), accumulate)
    if isinstance(weight, Quantized):
        letters = equation.partition("->")[0].partition(",")[2]
        kept = "".join(letter for letter in letters if letter in out)
        scale = weight.scale.reshape(
            [n for letter, n in zip(letters, weight.scale.shape, strict=True) if letter in out]
        )
        missing = [axis for axis, letter in enumerate(out) if letter not in kept]
        product = product * jnp.expand_dims(scale, missing).astype(product.dtype)
    return product


def _adapted(equation: str, x: jax.Array, weight: Adapted, accumulate: jnp.dtype | type | None) -> jax.Array:
    inputs, _, out = equation.partition("->")
    left, _, right = inputs.partition(",")
    summed = "".join(letter for letter in right if letter not in out)
    kept = "".join(letter for letter in right if letter in out)
    inner = "".join(letter for letter in left if letter not in summed) + "R"
    low = einsum(f"{left},{summed}R->{inner}", x, weight.down)
    term = einsum(f"{inner},R{kept}->{out}", low, weight.up, accumulate=accumulate)
    return einsum(equation, x, weight.base, accumulate=accumulate) + weight.scale * term


def _product(equation: str, x: jax.Array, weight: jax.Array, accumulate: jnp.dtype | type | None) -> jax.Array:
    """The einsum. Unplaced rows and times are one dimension: over two, a CPU takes twice as long for the gradient."""
    placement = _PLACEMENT.get()
    inner, _, rest = equation.partition(",")
    if placement is None and inner.startswith("BT") and "->BT" in rest:
        flat = f"{inner[1:]},{rest.replace('->BT', '->T')}"
        product = _contract(flat, x.reshape(-1, *x.shape[2:]), weight, accumulate, None)
        return product.reshape(*x.shape[:2], *product.shape[1:])
    sharding = None
    if placement is not None and _is_explicit(placement[0]):
        sharding = NamedSharding(placement[0], spec(equation.rpartition("->")[2], placement[1]))
    return _contract(equation, x, weight, accumulate, sharding)


def _contract(
    equation: str,
    x: jax.Array,
    weight: jax.Array,
    accumulate: jnp.dtype | type | None,
    sharding: NamedSharding | None,
) -> jax.Array:
    """The einsum, summed over dimensions in the order in which they stand.

    `jnp.einsum` takes them in alphabetical order: over K, G, H that transposes the whole weight in every call on a CPU.
    """
    left, _, rest = equation.partition(",")
    right, _, out = rest.partition("->")
    summed = [letter for letter in left if letter in right and letter not in out]
    if out != "".join(letter for letter in left + right if letter not in summed):
        return jnp.einsum(equation, x, weight, preferred_element_type=accumulate, out_sharding=sharding)
    dimensions = [left.index(letter) for letter in summed], [right.index(letter) for letter in summed]
    return jax.lax.dot_general(
        x, weight, (dimensions, ((), ())), preferred_element_type=accumulate, out_sharding=sharding
    )


def take(table: Weight, tokens_BT: jax.Array, letters: str, reshard_path: Sequence[Rules] = ()) -> jax.Array:
    """Rows of an embedding table `[V, D]`: `[B, T, D]`, placed as `letters`.

    Args:
      reshard_path: rules by which the rows are placed, one after another, before the ambient ones. With the table's own
        first, each device reads its part of D for all tokens, and the table is not moved.
    """
    assert not isinstance(table, Adapted), "an embedding has no adapter: lora.targets refuses it"
    if isinstance(table, Quantized):
        rows = constrain(table.values, "VD")[tokens_BT].astype(table.scale.dtype) * table.scale[tokens_BT]
        return constrain(rows, letters)
    placement = _PLACEMENT.get()
    if placement is None:
        return table[tokens_BT]
    mesh, rules = placement
    first, *others = (*reshard_path, rules)
    with placed(mesh, first):
        table, tokens_BT = constrain(table, "VD"), constrain(tokens_BT, letters[:-1])
        if _is_explicit(mesh):
            x = table.at[tokens_BT].get(out_sharding=NamedSharding(mesh, spec(letters, first)))
        else:
            x = constrain(table[tokens_BT], letters)
    for rules in others:
        with placed(mesh, rules):
            x = constrain(x, letters)
    return x


def _is_explicit(mesh: Mesh) -> bool:
    return AxisType.Explicit in mesh.axis_types
