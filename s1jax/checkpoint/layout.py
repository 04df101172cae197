"""How a parameter lies in a checkpoint and in a model: which slice of one is which slice of the other.

Knows shapes and the family's table, no files and no devices. A checkpoint's matrix has our letters in groups, such as
`"(K G H) D -> D K G H"`: the same groups in the same or in the opposite order, so one transposition at most.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from s1jax.models import FAMILIES
from s1jax.models.config import DecoderConfig

Slices = tuple[slice, ...]
BLOCK = 128  # side of a transposed tile; the cache lines of a whole column would evict one another


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint and the parameter that it is, or is a layer of.

    Attributes:
      path: the parameter in a model without layers' numbers, such as `blocks.q`.
      layer: which layer, None outside the blocks.
      name: the tensor in a Hugging Face checkpoint.
      groups: letters of each axis of the tensor, such as `("KGH", "D")`.
      letters: the parameter's letters, such as `DKGH`.
      sizes: length of each letter.
    """

    path: str
    layer: int | None
    name: str
    groups: tuple[str, ...]
    letters: str
    sizes: Mapping[str, int]

    @property
    def key(self) -> str:
        """The parameter in an unstacked model, such as `blocks.3.q`."""
        return self.path if self.layer is None else self.path.replace("blocks.", f"blocks.{self.layer}.")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter (of one layer)."""
        return tuple(self.sizes[letter] for letter in self.letters)

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Shape of the tensor in the checkpoint."""
        return tuple(math.prod(self.sizes[letter] for letter in group) for group in self.groups)


def entries(config: DecoderConfig) -> list[Entry]:
    """Every tensor of a checkpoint of this model, layer by layer, the embedding first and the head last."""
    sizes = {letter: getattr(config, letter) for letter in "DKGHFVL"}
    layout = FAMILIES[config.family].layout
    present = [path for path in layout if not (config.tied and path == "head")]
    inner = [path for path in present if path.startswith("blocks.")]
    tail = [path for path in present if path in ("norm", "head")]
    front = [path for path in present if path not in inner and path not in tail]

    def entry(path: str, layer: int | None) -> Entry:
        name, rule = layout[path]
        groups, letters = _parse(rule)
        name = name if layer is None else name.replace("{L}", str(layer))
        return Entry(path, layer, name, groups, letters, sizes)

    blocks = [entry(path, layer) for layer in range(config.L) for path in inner]
    return [*(entry(path, None) for path in front), *blocks, *(entry(path, None) for path in tail)]


def _parse(rule: str) -> tuple[tuple[str, ...], str]:
    """`"(K G H) D -> D K G H"` to `(("KGH", "D"), "DKGH")`."""
    left, _, right = rule.partition(" -> ")
    groups: list[str] = []
    is_open = False
    for token in left.replace("(", "( ").replace(")", " )").split():
        if token in "()":
            is_open = token == "("
            groups += [""] if is_open else []
        elif is_open:
            groups[-1] += token
        else:
            groups.append(token)
    letters = right.replace(" ", "")
    if letters not in ("".join(groups), "".join(reversed(groups))):
        raise ValueError(f"layout rule {rule!r} is not its groups in the same or the opposite order; write it so")
    return tuple(groups), letters


def file_slices(entry: Entry, index: Slices) -> Slices:
    """The part of the tensor that holds the part `index` of the parameter.

    Only the first letter of a group may be cut (`K` of `(K G H)`); the mesh rules shard no other.

    Raises:
      ValueError: `index` cuts an inner letter of a group.
    """
    bounds = {letter: part.indices(entry.sizes[letter])[:2] for letter, part in zip(entry.letters, index, strict=True)}
    slices = []
    for group in entry.groups:
        if cut := [letter for letter in group[1:] if bounds[letter] != (0, entry.sizes[letter])]:
            raise ValueError(
                f"{entry.name}: {cut[0]} is cut, but lies inside the axis {group}; shard {group[0]} instead"
            )
        width = math.prod(entry.sizes[letter] for letter in group[1:])
        start, stop = bounds[group[0]]
        slices.append(slice(start * width, stop * width))
    return tuple(slices)


def to_model(entry: Entry, part: np.ndarray, index: Slices) -> np.ndarray:
    """A part of the tensor as the part `index` of the parameter."""
    shape = tuple(len(range(*s.indices(n))) for s, n in zip(index, entry.shape, strict=True))
    return _turn(entry, part).reshape(shape)


def to_file(entry: Entry, value: np.ndarray) -> np.ndarray:
    """The whole parameter as the tensor of the checkpoint."""
    if entry.letters == "".join(entry.groups):
        return np.ascontiguousarray(value).reshape(entry.file_shape)
    return transpose(value.reshape(entry.file_shape[::-1]))


def _turn(entry: Entry, part: np.ndarray) -> np.ndarray:
    return part if entry.letters == "".join(entry.groups) else transpose(part)


def transpose(matrix: np.ndarray) -> np.ndarray:
    """A contiguous transposed copy of a matrix, tile by tile (twice as fast as the plain copy)."""
    rows, columns = matrix.shape
    out = np.empty((columns, rows), matrix.dtype)
    # Bytes do not change; numpy copies its own integers faster than the float types of ml_dtypes.
    plain = np.dtype(f"u{matrix.dtype.itemsize}")
    source, target = matrix.view(plain), out.view(plain)
    for row in range(0, rows, BLOCK):
        for column in range(0, columns, BLOCK):
            tile = source[row : row + BLOCK, column : column + BLOCK]
            target[column : column + BLOCK, row : row + BLOCK] = tile.T
    return out
