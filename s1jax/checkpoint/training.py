"""A training checkpoint as a source of `convert`: its model, one layer at a time; the optimizer's state is not read.

Of a run that trained adapters it is the base with the adapters merged into it.

OUT/config.yaml                which model was trained, and where its tokenizer lies
OUT/checkpoints/00000040/      what `store` wrote
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import tensorstore
import yaml

from s1jax.checkpoint import layout, saved
from s1jax.checkpoint.entry import Entry, Slices, Source
from s1jax.checkpoint.folder import fetch, read_config
from s1jax.checkpoint.hf import open_source
from s1jax.config import BadInput, from_dict
from s1jax.models.config import DecoderConfig
from s1jax.models.lora import LoraConfig


def is_one(folder: pathlib.Path) -> bool:
    """Whether `folder` holds a training checkpoint."""
    return (folder / saved.MANIFEST).is_file() and (folder / saved.ARRAYS).is_dir()


def scan(folder: pathlib.Path) -> Source:
    """The model of a training checkpoint, every file of which has been read against its hash.

    Raises:
      BadInput: the checkpoint is damaged, the run's config.yaml is missing or names no model, or the two differ.
    """
    try:
        saved.verify(saved.read_manifest(folder))
    except saved.Damaged as wrong:
        raise BadInput(f"{folder} is damaged: {wrong}; convert another checkpoint of the run") from None
    run = _run_config(folder)
    given = run.get("model")
    if run.get("lora"):
        return _merged(folder, given, from_dict(LoraConfig, run["lora"], "lora."))
    if isinstance(given, dict):
        config = from_dict(DecoderConfig, given.get("init") or {}, "model.init.")
    else:
        config = read_config(fetch(str(given)))
    entries = layout.entries(config)
    dtypes = {}
    for entry in entries:
        array = _open(folder, f"{entry.path}.value")
        expected = entry.shape if entry.layer is None else (config.L, *entry.shape)
        if tuple(array.shape) != expected:
            raise BadInput(
                f"{entry.path} in {folder} has shape {tuple(array.shape)}, config.yaml's model asks for {expected}; "
                "the two belong to different runs"
            )
        dtypes[entry.key] = np.dtype(array.dtype.numpy_dtype)

    def read(entry: Entry, index: Slices) -> np.ndarray:
        at = index if entry.layer is None else (entry.layer, *index)
        return _open(folder, f"{entry.path}.value")[at].read().result()

    tokenizer = run.get("tokenizer") or (given if isinstance(given, str) else None)
    return Source(fetch(tokenizer) if tokenizer else folder, config, entries, dtypes, read, {})


def _merged(folder: pathlib.Path, given: Any, lora: LoraConfig) -> Source:
    """The base of adapters, with the adapters of the checkpoint added where it is read."""
    if not isinstance(given, str):
        raise BadInput(f"the base of {folder} had random weights, which are nowhere; use the run's hf/ instead")
    base = open_source(fetch(given))
    parts = {name: [_open(folder, f"{name}.{side}") for side in ("down", "up")] for name in lora.targets}

    def read(entry: Entry, index: Slices) -> np.ndarray:
        value = base.read(entry, index)
        target = entry.path.removeprefix("blocks.")
        if entry.layer is None or target not in parts:
            return value
        down, up = (part[entry.layer].read().result() for part in parts[target])
        inputs = down.ndim - 1
        term = np.tensordot(down[index[:inputs]], up[(slice(None), *index[inputs:])], 1)
        return (value + lora.scale * term).astype(value.dtype)

    return dataclasses.replace(base, read=read)


def _run_config(folder: pathlib.Path) -> dict[str, Any]:
    path = folder.absolute().parent.parent / "config.yaml"
    if not path.is_file():
        raise BadInput(f"{folder} is a training checkpoint, but {path} is missing; give one inside its run's folder")
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or not data.get("model"):
        raise BadInput(f"{path} names no model; give a checkpoint inside its run's folder")
    return data


def _open(folder: pathlib.Path, name: str) -> Any:
    state = (folder / saved.ARRAYS / "state").absolute()
    place = {"driver": "ocdbt", "base": f"file://{state}/", "path": f"model.{name}/"}
    try:
        return tensorstore.open({"driver": "zarr3", "kvstore": place}, read=True).result()
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{folder} holds no parameter {name} ({reason}); it is of another model") from None
