"""The folder of a run: the config it was made from, which must be the same when the run goes on."""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import yaml

from s1jax import records
from s1jax.config import BadInput, to_dict
from s1jax.runs import fingerprint, places
from s1jax.runs.fingerprint import Content
from s1jax.runs.lock import locked
from s1jax.runs.mirror import mirrored

FORMAT, CONFIG = "s1jax.run/2", "config.yaml"
PACKAGES = ("s1jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")


def identity(config: Any) -> dict[str, Any]:
    """Flat `{dotted key: value}` of the fields that say what a run computes.

    `free` fields and `out` are left out, and names of what is known by its content (`config.by_content`).
    """
    flat: dict[str, Any] = {}

    def walk(node: Any, prefix: str) -> None:
        for field in dataclasses.fields(node):
            if field.metadata.get("free") or (not prefix and field.name == "out"):
                continue
            value = getattr(node, field.name)
            if field.metadata.get("content") and not dataclasses.is_dataclass(value):
                continue
            if dataclasses.is_dataclass(value):
                walk(value, f"{prefix}{field.name}.")
            else:
                flat[prefix + field.name] = json.loads(json.dumps(_plain(value)))

    walk(config, "")
    return flat


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


@contextlib.contextmanager
def entered(
    config: Any, *, device: str, contents: Callable[[], Mapping[str, Content]] = dict
) -> Iterator[pathlib.Path]:
    """`open_run` under the folder's lock, which is held until the context ends: whoever is refused has changed nothing.

    Raises:
      BadInput: another process is in the folder, or it belongs to another run.
    """
    out = places.place(config.out)
    with locked(out):
        if not places.is_remote(out):
            yield open_run(config, device=device, contents=contents())
            return
        with mirrored(out) as local:
            yield open_run(config, device=device, contents=contents(), folder=local)


def open_run(
    config: Any,
    *,
    device: str,
    contents: Mapping[str, Content] | None = None,
    folder: pathlib.Path | None = None,
) -> pathlib.Path:
    """Make or enter the run folder `config.out` and leave the resolved config, versions, device and seed in it.

    Args:
      config: a frozen dataclass with a field `out`.
      device: what the run computes on, in words.
      contents: by key, what the run reads.
      folder: where `config.out` is mirrored.

    Returns: the folder.

    Raises:
      BadInput: the folder belongs to a run whose identity keys differ, or that was made from other contents. Nothing in
        it is touched.
    """
    out = places.place(config.out) if folder is None else folder
    receipt = out / "run.json"
    if out.exists() and not out.is_dir():
        raise BadInput(f"out={out} is a file; give the path of a folder")
    if receipt.is_file():
        check_run(config, out, contents)
        if (out / CONFIG).is_dir():
            raise BadInput(f"{out / CONFIG} is a folder; remove it, or give another out folder")
    elif out.is_dir() and not all(path.name.startswith((".run.json.", ".lock")) for path in out.iterdir()):
        raise BadInput(f"out={out} holds files but no run.json, so no run to go on with; give a new or an empty folder")
    record = {
        "format": FORMAT,
        "kind": type(config).__name__,
        "identity": identity(config),
        "contents": {key: dataclasses.asdict(content) for key, content in (contents or {}).items()},
        "seed": getattr(config, "seed", None),
        "device": device,
        "python": platform.python_version(),
        "environment": {name: value for name, value in os.environ.items() if name.startswith(("XLA_", "JAX_"))},
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }
    records.write_json(receipt, record)  # first: a folder without it is taken for another's
    (out / CONFIG).write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")
    return out


def check_run(config: Any, out: Any, contents: Mapping[str, Content] | None = None) -> None:
    """Compare a config and what it reads with the run that the folder `out` holds; nothing is written.

    Raises:
      BadInput: it is another run, or was made from other contents.
    """
    contents = contents or {}
    receipt = out / "run.json"
    out = config.out  # named as it was given: its copy of an object store has a name of its own
    try:
        before = json.loads(receipt.read_text(encoding="utf-8"))
        kind, old = before["kind"], before["identity"]
        read = {key: dict(content["files"]) for key, content in before["contents"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{receipt} cannot be read ({error!r}); give a new out folder") from None
    if kind != type(config).__name__:
        raise BadInput(f"out={out} belongs to a {kind}, not a {type(config).__name__}; give another out folder")
    new = identity(config)
    different = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if different:
        shown = "; ".join(f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in different[:4])
        more = f" (and {len(different) - 4} more)" if len(different) > 4 else ""
        raise BadInput(f"out={out} belongs to another run: {shown}{more}; set them back or give another out folder")
    for key in {**read, **contents}:
        if words := fingerprint.difference(key, read.get(key), contents.get(key)):
            raise BadInput(
                f"{words} since the run in out={out} was begun; put back what was there, or give another out folder"
            )


def contents_of(out: pathlib.Path) -> dict[str, Content]:
    """What the run in a folder was made from, by key."""
    found = json.loads((out / "run.json").read_text(encoding="utf-8"))["contents"]
    return {key: Content(**content) for key, content in found.items()}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
