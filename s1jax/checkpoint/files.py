"""A folder of safetensors as named tensors, read by slice and written as a stream. Knows nothing of models.

No pickle is ever read. Reading goes through the safetensors library; writing is done here since the library wants every
tensor of a file in memory at once.
"""

import concurrent.futures
import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from s1jax.config import BadInput
from s1jax.records import write_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(jnp.bfloat16), "F16": np.dtype(np.float16)}
ROWS = 256
CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Stored:
    """One tensor in a file: `dtype` is the safetensors code, such as `BF16`, and `start` its first byte."""

    name: str
    file: pathlib.Path
    shape: tuple[int, ...]
    dtype: str
    start: int

    def blocks(self, slices: Sequence[slice] | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """`(first row, rows)` of the tensor, or of a part of it, a few megabytes at a time.

        They are views of the file, mapped for as long as one tensor is read: the library's slices are copied twice
        into fresh memory, which costs more than reading them.
        """
        first, *others = slices or [slice(0, n) for n in self.shape]
        values = np.memmap(self.file, DTYPES[self.dtype], "r", self.start, self.shape)
        for start in range(first.start, first.stop, ROWS):
            rows = slice(start, min(start + ROWS, first.stop))
            yield start - first.start, values[(rows, *others)]


def scan(folder: pathlib.Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint folder, from its index or its single file; no tensor is read.

    Raises:
      BadInput: no safetensors (only a pickle, say); an index that is damaged, points outside its folder, or names a
        file or a tensor that is not there; a file that is cut off or not safetensors.
    """
    if not (folder / INDEX).is_file():
        if not (folder / SINGLE).is_file():
            raise BadInput(_nothing(folder))
        return {stored.name: stored for stored in _open(folder / SINGLE)}
    where = _read_index(folder / INDEX)
    found = {stored.name: stored for name in sorted(set(where.values())) for stored in _open(folder / name)}
    for tensor, file in where.items():
        if tensor not in found:
            raise BadInput(f"{folder / INDEX} places {tensor!r} in {file}, which lacks it; fetch both files again")
    return found


def _nothing(folder: pathlib.Path) -> str:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES) if folder.is_dir() else []
    if pickles:
        return f"{folder} holds {pickles[0]}, a pickle, which can run code when read; convert it to safetensors"
    return f"{folder} holds neither {SINGLE} nor {INDEX}; give the folder of a Hugging Face checkpoint"


def _read_index(path: pathlib.Path) -> dict[str, str]:
    try:
        where = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = set(where.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path} is not an index with a weight_map ({error!r}); fetch it again") from None
    for name in files:
        # By its spelling alone: the files of the hub's cache are links that lead out of the folder.
        if not isinstance(name, str) or pathlib.PurePosixPath(name).name != name or "\\" in name:
            raise BadInput(f"{path} points to {name!r}, outside its folder; an index may only name files beside it")
        if not (path.parent / name).is_file():
            raise BadInput(f"{path} names {name}, which is not there; fetch that file")
    return where


def _open(path: pathlib.Path) -> list[Stored]:
    try:
        with safetensors.safe_open(path, framework="np"):  # reads no tensor, checks that the header fits the file
            pass
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        return [
            Stored(name, path, tuple(field["shape"]), field["dtype"], 8 + size + field["data_offsets"][0])
            for name, field in header.items()
            if name != "__metadata__"
        ]
    except (safetensors.SafetensorError, OSError) as error:
        raise BadInput(f"{path} is cut off or not a safetensors file ({error}); fetch it again") from None


@dataclasses.dataclass(frozen=True)
class Pending:
    """A tensor to be written: what the header needs, and its values as blocks in order, asked for at its turn.

    A block must stay as it is until the one after the next is asked for.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    blocks: Callable[[], Iterable[np.ndarray]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write(folder: pathlib.Path, tensors: Sequence[Pending], *, file_bytes: int) -> None:
    """Write tensors in order as one file, or as several of at most `file_bytes` (one tensor at least) and an index."""
    groups: list[list[Pending]] = []
    for tensor in tensors:
        if not groups or sum(other.nbytes for other in groups[-1]) + tensor.nbytes > file_bytes:
            groups.append([])
        groups[-1].append(tensor)
    if len(groups) == 1:
        _write_file(folder / SINGLE, groups[0])
        return
    where: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        _write_file(folder / name, group)
        where |= {tensor.name: name for tensor in group}
    size = sum(tensor.nbytes for tensor in tensors)
    write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))})


def _write_file(path: pathlib.Path, tensors: Iterable[Pending]) -> None:
    """The safetensors format: length of the header as 8 bytes, the header as JSON, the tensors' bytes."""
    tensors = list(tensors)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file, concurrent.futures.ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(file.write, len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            for block in tensor.blocks():  # made while the one before is written
                under_way.result()
                under_way = pool.submit(file.write, block.reshape(-1).view(np.uint8).data)
        under_way.result()
