"""How a parameter lies in a checkpoint and in a model: which slice of one is which slice of the other.

Knows shapes and the family's table, no files and no devices. A checkpoint's matrix has our letters in groups, such as
`"(K G H) D -> D K G H"`: the same groups in the same or in the opposite order, so one transposition at most.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np

from s1jax.checkpoint.entry import Entry, Slices
from s1jax.models import FAMILIES
from s1jax.models.config import DecoderConfig

BLOCK = 256  # rows read, written or transposed at once


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


def to_model(entry: Entry, blocks: Iterable[tuple[int, np.ndarray]], index: Slices, dtype: np.dtype) -> np.ndarray:
    """The part `index` of a parameter, from the part of the tensor that `file_slices` names.

    Args:
      blocks: `(first row, rows)` of that part, in any order; each is used before the next is asked for.
      dtype: type of the result.
    """
    shape = tuple(len(range(*s.indices(n))) for s, n in zip(index, entry.shape, strict=True))
    rows, *columns = (s.stop - s.start for s in file_slices(entry, index))
    is_turned = _is_turned(entry)
    out = np.empty((columns[0], rows) if is_turned else (rows, *columns), dtype)
    for start, block in blocks:
        if is_turned:
            _transpose_into(out[:, start : start + len(block)], block.astype(dtype, copy=False))
        else:
            out[start : start + len(block)] = block
    return out.reshape(shape)


def to_file(entry: Entry, value: np.ndarray, dtype: np.dtype) -> Iterator[np.ndarray]:
    """The whole parameter as blocks of rows of the tensor of the checkpoint, in order, each contiguous.

    A block is overwritten by the one after the next: one can be written to a file while the next is made.
    """
    rows = entry.file_shape[0]
    if not _is_turned(entry):
        matrix = value.reshape(entry.file_shape)
        for start in range(0, rows, BLOCK):
            yield np.ascontiguousarray(matrix[start : start + BLOCK].astype(dtype, copy=False))
        return
    matrix = value.reshape(entry.file_shape[::-1])
    pair = np.empty((2, min(BLOCK, rows), len(matrix)), dtype)
    for start in range(0, rows, BLOCK):
        part = matrix[:, start : start + BLOCK].astype(dtype, copy=False)
        block = pair[start // BLOCK % 2, : part.shape[1]]
        _transpose_into(block, part)
        yield block


def _is_turned(entry: Entry) -> bool:
    return entry.letters != "".join(entry.groups)


def _transpose_into(target: np.ndarray, source: np.ndarray) -> None:
    """`target[...] = source.T`, tile by tile through a small copy: five times as fast as numpy does it.

    Rows that are a power of two apart share cache lines; the copy's rows are not.
    """
    plain = np.dtype(f"u{source.dtype.itemsize}")  # numpy copies its own integers faster than the types of ml_dtypes
    source, target = source.view(plain), target.view(plain)
    rows, columns = source.shape
    staged = np.empty((BLOCK, BLOCK + 8), plain)
    for row in range(0, rows, BLOCK):
        for column in range(0, columns, BLOCK):
            tile = source[row : row + BLOCK, column : column + BLOCK]
            copy = staged[: tile.shape[0], : tile.shape[1]]
            copy[...] = tile
            target[column : column + BLOCK, row : row + BLOCK] = copy.T
