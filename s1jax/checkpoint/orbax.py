"""Model checkpoints in Orbax: one key per layer and tensor, in the model's layout, plain zarr without compression.

    FOLDER/config.json, tokenizer files   as in the Hugging Face checkpoint it came from
    FOLDER/orbax/                         the Orbax checkpoint; its keys are those of an unstacked model
    FOLDER/s1jax.json                     the size of each key on disk, and tensors that repeated another one

Each tensor is one chunk: it is written without a copy, and read whole by a host that holds a part of it.
"""

import concurrent.futures
import contextlib
import functools
import json
import logging
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorstore
from orbax.checkpoint import v1 as ocp

from s1jax.checkpoint.entry import Entry, Slices, Source
from s1jax.config import BadInput
from s1jax.models.config import DecoderConfig
from s1jax.records import write_json

FORMAT = "s1jax.model/1"
ARRAYS, STATE, MANIFEST = "orbax", "state", "s1jax.json"
INDEX_BYTES = 20  # of a shard of one chunk: start and size of 8 bytes each, and a checksum
BATCH_BYTES = 256 * 2**20  # written at once: a call costs about 50 ms, whatever it writes


def is_one(folder: pathlib.Path) -> bool:
    """Whether `folder` holds a model checkpoint of this module."""
    return (folder / MANIFEST).is_file()


def write(folder: pathlib.Path, values: Iterable[tuple[Entry, np.ndarray]], copies: Mapping[str, str]) -> None:
    """Write every entry, in batches, then the manifest. `values` are in the model's layout and not used again.

    While one batch is written the next is put together.
    """
    path = str((folder / ARRAYS).absolute())
    context = ocp.Context()
    context.array.saving.use_ocdbt = False
    context.array.saving.use_zarr3 = True
    context.array.saving.use_compression = False
    context.memory.deepcopy_host_arrays = False
    shapes: dict[str, dict[str, Any]] = {}

    def save(batch: dict[str, np.ndarray]) -> None:
        with context:
            ocp.partial.save(path, batch)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(int)
        batch: dict[str, np.ndarray] = {}
        for entry, value in values:
            if batch and sum(other.nbytes for other in batch.values()) + value.nbytes > BATCH_BYTES:
                under_way.result()
                under_way = pool.submit(save, batch)
                batch = {}
            batch[entry.key] = value
            shapes[entry.key] = {"shape": list(value.shape), "dtype": value.dtype.name}
        under_way.result()
        pool.submit(save, batch).result()
    with context, _quiet():
        ocp.partial.finalize(path)
    sizes = {key: {**shape, "bytes": _size(folder, key)} for key, shape in shapes.items()}
    write_json(folder / MANIFEST, {"format": FORMAT, "tensors": sizes, "copies": dict(copies)})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax warns that there is nothing to merge, as it must be without OCDBT."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _size(folder: pathlib.Path, key: str) -> int:
    return sum(path.stat().st_size for path in (folder / ARRAYS / STATE / key).rglob("*") if path.is_file())


def scan(folder: pathlib.Path, config: DecoderConfig, entries: Sequence[Entry]) -> Source:
    """A checkpoint of this module with these entries, after every check that needs no values.

    Raises:
      BadInput: the manifest is damaged; a tensor is missing, cut off, unknown, or of another shape than config.json's.
    """
    manifest = _read_manifest(folder)
    tensors = manifest["tensors"]
    wanted = {entry.key: entry for entry in entries}
    if missing := [key for key in wanted if key not in tensors]:
        raise BadInput(f"{folder} lacks tensor {missing[0]!r}, which its config.json asks for; convert it again")
    if unknown := [key for key in tensors if key not in wanted]:
        raise BadInput(f"{folder} holds tensor {unknown[0]!r}, which no {config.family} model has; convert it again")
    for key, entry in wanted.items():
        stored = tensors[key]
        if stored["shape"] != entry.shape:
            raise BadInput(
                f"tensor {key!r} in {folder} has shape {stored['shape']}, config.json asks for {entry.shape}; "
                "the two belong to different models"
            )
        if (size := _size(folder, key)) != stored["bytes"]:
            raise BadInput(
                f"tensor {key!r} in {folder} is cut off: {size} of {stored['bytes']} bytes; convert it again"
            )
    dtypes = {key: tensors[key]["dtype"] for key in wanted}
    return Source(folder, config, entries, dtypes, _reader(folder), manifest["copies"])


def _read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']!r}, not {FORMAT!r}")
        tensors = {
            key: {"shape": tuple(stored["shape"]), "dtype": np.dtype(stored["dtype"]), "bytes": int(stored["bytes"])}
            for key, stored in manifest["tensors"].items()
        }
        return {"tensors": tensors, "copies": dict(manifest["copies"])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{folder / MANIFEST} is not a model's manifest ({error!r}); convert it again") from None


def _mapped(folder: pathlib.Path) -> np.ndarray | None:
    """An array that is one chunk of bare bytes as a view of its file, which saves copying it twice; None for another.

    Such a chunk is a shard of one: its bytes, then where they begin and how many they are (zarr's `sharding_indexed`).
    """
    try:
        meta = json.loads((folder / "zarr.json").read_bytes())
        shape, dtype = meta["shape"], np.dtype(meta["data_type"])
        (outer,) = (codec["configuration"] for codec in meta["codecs"])
        chunks = [meta["chunk_grid"]["configuration"]["chunk_shape"], outer["chunk_shape"]]
        if chunks != [shape, shape] or outer["codecs"] != [{"name": "bytes", "configuration": {"endian": "little"}}]:
            return None
        path, size = folder.joinpath("c", *["0"] * len(shape)), math.prod(shape) * dtype.itemsize
        with path.open("rb") as file:
            file.seek(size)
            index = file.read()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # tensorstore says what is wrong
    is_plain = len(index) == INDEX_BYTES and index[:16] == (0).to_bytes(8, "little") + size.to_bytes(8, "little")
    return np.memmap(path, dtype, "r", shape=tuple(shape)) if is_plain else None


def _reader(folder: pathlib.Path) -> Callable[[Entry, Slices], np.ndarray]:
    @functools.lru_cache(maxsize=1)
    def whole(key: str) -> np.ndarray:
        place = {"driver": "file", "path": str((folder / ARRAYS / STATE / key).absolute())}
        try:
            if (plain := _mapped(folder / ARRAYS / STATE / key)) is not None:
                return plain
            return tensorstore.open({"driver": "zarr3", "kvstore": place}, read=True).result().read().result()
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            raise BadInput(f"tensor {key!r} in {folder} cannot be read ({reason}); convert it again") from None

    return lambda entry, index: whole(entry.key)[index]
