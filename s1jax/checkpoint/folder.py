"""The folder of a checkpoint: its config, the files beside the tensors, and how a new one comes to be complete.

A folder is written under a neighbouring name and renamed when all of it is on disk, so one that has its name is whole.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from s1jax import hub
from s1jax.config import BadInput
from s1jax.models import FAMILIES, config_from_hf
from s1jax.models.config import DecoderConfig
from s1jax.runs import places
from s1jax.text import token_backend

CARRIED = (*token_backend.TOKENIZER_FILES, "generation_config.json")


def read_config(folder: str | os.PathLike) -> DecoderConfig:
    """The architecture that a checkpoint's `config.json` describes.

    Raises:
      BadInput: no such file, not JSON, an unknown family, or a field that this project does not support.
    """
    return config_from_hf(read_config_json(pathlib.Path(folder)))


def read_config_json(folder: pathlib.Path) -> dict[str, Any]:
    """The content of `config.json`. Raises BadInput when it is missing or not a JSON object."""
    path = folder / "config.json"
    if not path.is_file():
        raise BadInput(f"{folder} holds no config.json; give the folder of a Hugging Face checkpoint")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path} is not JSON ({error}); fetch it again") from None
    if not isinstance(data, dict):
        raise BadInput(f"{path} holds a {type(data).__name__}, not an object; fetch it again")
    return data


def fetch(source: str | os.PathLike) -> pathlib.Path:
    """The folder of a checkpoint, or of a hub id whose files are fetched. Raises BadInput when it is neither."""
    return hub.fetch(places.fetched(source), ["*.safetensors", "*.json", *CARRIED], "model")


def open_partial(target: pathlib.Path, *, replace: bool) -> pathlib.Path:
    """An empty folder beside `target` to write into; what a killed run left there is removed.

    Raises:
      BadInput: `target` holds something that may not be replaced.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        if not replace:
            raise BadInput(f"{target} exists and is not empty; give another folder, or remove it first")
        if not any((target / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise BadInput(f"{target} is not a checkpoint (no config.json), so it is not replaced; give another folder")
    partial = target.with_name(f".{target.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    return partial


def close_partial(partial: pathlib.Path, target: pathlib.Path) -> None:
    """Give a finished folder its name, once all of it is on disk; a folder that had the name goes."""
    for path in partial.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    old = target.with_name(f".{target.name}.old")
    if old.exists():
        shutil.rmtree(old)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    if old.exists():
        shutil.rmtree(old)


def carry(source: pathlib.Path | None, target: pathlib.Path) -> None:
    """Copy the tokenizer's files and `generation_config.json` where there are any."""
    for name in CARRIED:
        if source is not None and (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def config_json(config: DecoderConfig, source: pathlib.Path | None, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The source's `config.json` where it describes this model, else one of our own with the source's special ids.

    `fields` come last; `dtype` among them goes by its older name where the source uses that.
    """
    given = token_backend.read_object(source / "config.json") if source is not None else {}
    try:
        is_same = bool(given) and config_from_hf(given) == config
    except BadInput:
        is_same = False
    ids = {key: given[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in given}
    data = dict(given) if is_same else {**FAMILIES[config.family].to_hf(config), **ids}
    # vLLM and transformers before 4.56 know only the older name, later versions know both.
    renamed = {"torch_dtype" if key == "dtype" and "dtype" not in data else key: value for key, value in fields.items()}
    return {**data, **renamed}
