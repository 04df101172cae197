"""The content by which a run knows the model and the tokenizer that it was made from."""

import pathlib

from s1jax import hub
from s1jax.checkpoint import orbax, training
from s1jax.checkpoint.folder import fetch
from s1jax.runs import fingerprint, places
from s1jax.runs.fingerprint import Content
from s1jax.text import token_backend

BESIDE = ("config.json", "generation_config.json", "model.safetensors.index.json")


def of_model(source: str) -> Content:
    """Tensors and architecture of a checkpoint that can be loaded or converted.

    Raises:
      BadInput: neither a folder nor a hub id, or a file in it cannot be read.
    """
    folder = fetch(source)
    paths = [folder / name for name in BESIDE if (folder / name).is_file()]
    if training.is_one(folder):
        paths.append(folder / training.saved.MANIFEST)  # which has the hash of every other file
    elif orbax.is_one(folder):
        paths += [folder / orbax.MANIFEST, *_below(folder / orbax.ARRAYS)]
    else:
        paths += folder.glob("*.safetensors")
    return fingerprint.of_files(source, paths, folder)


def of_tokenizer(source: str, key: str = "tokenizer") -> Content:
    """Vocabulary, chat template and EOS tokens. `key`: of the config, named in errors. Raises BadInput."""
    folder = hub.fetch(places.fetched(source), token_backend.FETCHED, key)
    paths = [folder / name for name in token_backend.FETCHED if (folder / name).is_file()]
    return fingerprint.of_files(source, paths, folder)


def of_texts(model: str, tokenizer: str, template: str) -> dict[str, Content]:
    """What makes tokens of a run's texts: the tokenizer, by default the model's, and a template of one's own."""
    own = {"tokenizer": of_tokenizer(tokenizer or model, "tokenizer" if tokenizer else "model")}
    return own | ({"chat_template": of_file(template)} if template else {})


def of_file(source: str) -> Content:
    """One file, whatever its name. Raises BadInput when it cannot be read."""
    (sha256,) = fingerprint.of_files(source, [places.fetched(source).expanduser()]).files.values()
    return Content(source, {"the content": sha256})


def _below(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
