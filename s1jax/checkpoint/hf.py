"""Hugging Face checkpoints in and out, by the layout table of the family, without transformers.

Reading is by slice, straight into shards. Writing is one tensor at a time, into a folder beside the target that takes
its name when all of it is on disk.
"""

import functools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from s1jax import hub
from s1jax.checkpoint import files, layout, orbax
from s1jax.checkpoint.entry import Entry, Slices, Source
from s1jax.checkpoint.files import Pending, Stored
from s1jax.checkpoint.folder import carry, close_partial, config_json, fetch, open_partial, read_config
from s1jax.checkpoint.source import build
from s1jax.config import BadInput
from s1jax.models import FAMILIES
from s1jax.models.config import DecoderConfig
from s1jax.models.decoder import Decoder, Model, Unstacked, named
from s1jax.records import write_json
from s1jax.runs import places
from s1jax.text import token_backend
from s1jax.text.tokens import Tokenizer

FILE_BYTES = 5 * 10**9
DTYPE_NAMES = {code: name for name, code in (("float32", "F32"), ("bfloat16", "BF16"), ("float16", "F16"))}


def load(
    source: str | os.PathLike,
    *,
    mesh: Mesh | None = None,
    dtype: Any = None,
    stacked: bool = True,
) -> Decoder | Unstacked:
    """Read a checkpoint into a model.

    Args:
      source: a folder with `config.json` and safetensors, or what `convert` made of one in Orbax, or a hub id.
      mesh: where the parameters lie, by `mesh.PARAM`; None for the default device.
      dtype: type of every parameter; None keeps the checkpoint's (float32, where layers differ and are stacked).
      stacked: a `Decoder` (training), else an `Unstacked` (decoding).

    Raises:
      BadInput: a damaged, incomplete or unsupported checkpoint (a different line for each cause), or a mesh that does
        not divide a dimension.
    """
    folder = fetch(source)
    return build(open_source(folder), mesh=mesh, dtype=dtype, stacked=stacked)


def open_source(folder: pathlib.Path) -> Source:
    """A checkpoint folder of either kind. Raises BadInput when it is damaged or neither."""
    config = read_config(folder)
    entries = layout.entries(config)
    return orbax.scan(folder, config, entries) if orbax.is_one(folder) else _scan(folder, config, entries)


def _scan(folder: pathlib.Path, config: DecoderConfig, entries: Sequence[Entry]) -> Source:
    """A folder of safetensors, after every check that needs no values."""
    stored, copies = _match(config, files.scan(folder), folder)

    dtypes = {entry.key: files.DTYPES[stored[entry.name].dtype] for entry in entries}

    def read(entry: Entry, index: Slices) -> np.ndarray:
        blocks = stored[entry.name].blocks(layout.file_slices(entry, index))
        return layout.to_model(entry, blocks, index, dtypes[entry.key])

    return Source(folder, config, entries, dtypes, read, copies)


def _match(
    config: DecoderConfig, found: Mapping[str, Stored], folder: pathlib.Path
) -> tuple[dict[str, Stored], dict[str, str]]:
    """The stored tensor of every entry, and the tensors that repeat another.

    A tied checkpoint may hold a copy of the embedding as its head, as some trainers leave it; it must equal it.
    """
    wanted = {entry.name: entry for entry in layout.entries(config)}
    table = FAMILIES[config.family].layout
    if missing := [name for name in wanted if name not in found]:
        raise BadInput(f"{folder} lacks {_some(missing)}, which its config.json asks for; fetch the missing file")
    head, embed = table["head"][0], table["embed"][0]
    unknown = [name for name in found if name not in wanted and not (config.tied and name == head)]
    if unknown:
        raise BadInput(f"{folder} holds {_some(unknown)}, which no {config.family} model has; use its own family")
    for name, entry in wanted.items():
        if found[name].shape != entry.file_shape:
            raise BadInput(
                f"tensor {name!r} in {found[name].file} has shape {found[name].shape}, config.json asks for "
                f"{entry.file_shape}; the two belong to different models"
            )
        if found[name].dtype not in files.DTYPES:
            raise BadInput(
                f"tensor {name!r} in {found[name].file} has type {found[name].dtype}, supported are "
                f"{', '.join(files.DTYPES)}; convert it to one of them"
            )
    is_repeated = config.tied and head in found
    if is_repeated and not _equal(found[head], found[embed]):
        raise BadInput(
            f"{folder} is tied by config.json, but {head!r} differs from {embed!r}; set tie_word_embeddings to false"
        )
    return {name: found[name] for name in wanted}, {head: embed} if is_repeated else {}


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"tensor{'s' * (len(names) > 1)} " + ", ".join(map(repr, names[:3])) + more


def _equal(one: Stored, other: Stored) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return all(a.tobytes() == b.tobytes() for (_, a), (_, b) in zip(one.blocks(), other.blocks(), strict=True))


def save(
    model: Model,
    folder: str | os.PathLike,
    *,
    dtype: Any = None,
    tokenizer_source: str | os.PathLike | Tokenizer | None = None,
    config_extra: Mapping[str, Any] | None = None,
    replace: bool = False,
    file_bytes: int = FILE_BYTES,
) -> None:
    """Write a model as a folder that transformers and vLLM read. On several hosts all call it and the first one writes.

    Args:
      model: stacked or unstacked, on any mesh.
      dtype: type of every tensor; None keeps the parameters'.
      tokenizer_source: folder, hub id or `Tokenizer` whose tokenizer, chat template and `generation_config.json` come
        along; where its `config.json` describes this architecture, that file is carried too.
      config_extra: fields put into `config.json` last.
      replace: a checkpoint that stands in `folder` gives way, at the end.
      file_bytes: size at which a new file begins.

    Raises:
      BadInput: `folder` holds something and `replace` is false, or it is not a checkpoint.
    """
    target = pathlib.Path(folder)
    pending = _pending(model, dtype)
    if jax.process_index() == 0:
        partial = open_partial(target, replace=replace)
        files.write(partial, pending, file_bytes=file_bytes)
        dtype_name = DTYPE_NAMES[files.CODES[pending[0].dtype]]
        _write_beside(partial, model.config, tokenizer_source, {"dtype": dtype_name, **(config_extra or {})})
        close_partial(partial, target)
    else:
        for tensor in pending:  # the other hosts take part in gathering what the first one writes
            tensor.blocks()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"saved {target}")


def _write_beside(
    folder: pathlib.Path,
    config: DecoderConfig,
    tokenizer_source: str | os.PathLike | Tokenizer | None,
    fields: Mapping[str, Any],
) -> None:
    source = None
    if isinstance(tokenizer_source, Tokenizer):
        source = tokenizer_source.folder
    elif tokenizer_source is not None:
        source = hub.fetch(places.fetched(tokenizer_source), token_backend.FETCHED, "tokenizer")
    carry(source, folder)
    if isinstance(tokenizer_source, Tokenizer):
        tokenizer_source.save(folder)
    write_json(folder / "config.json", config_json(config, source, fields))


def _pending(model: Model, dtype: Any) -> list[Pending]:
    arrays = named(model)

    def pending(entry: Entry) -> Pending:
        is_stacked = entry.key not in arrays
        array = arrays[entry.path if is_stacked else entry.key]
        held = np.dtype(array.dtype if dtype is None else dtype)

        def blocks() -> Iterator[np.ndarray]:
            return layout.to_file(entry, _to_host(array, entry.layer if is_stacked else None, held), held)

        return Pending(entry.name, entry.file_shape, held, blocks)

    return [pending(entry) for entry in layout.entries(model.config)]


@functools.partial(jax.jit, static_argnums=2)
def _layer(array: jax.Array, layer: jax.Array | None, dtype: Any) -> jax.Array:
    return (array if layer is None else array[layer]).astype(dtype)


def _to_host(array: jax.Array, layer: int | None, dtype: np.dtype) -> np.ndarray:
    """An array, or one layer of a stack, as a whole on this host. The layer is traced: one program a shape."""
    if layer is not None or array.dtype != dtype:
        array = _layer(array, None if layer is None else jnp.asarray(layer), dtype)
    if array.is_fully_addressable:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)
