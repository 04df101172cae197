"""Training checkpoints: a whole pytree at a step, written by Orbax in the background, with a hash of every file.

    ROOT/00000040/arrays/...       Orbax, one or more hosts
    ROOT/00000040/manifest.json    written last: a checkpoint without it is not one

Knows nothing of models or optimizers; a state is any pytree of arrays.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from s1jax.config import BadInput
from s1jax.records import write_json

FORMAT = "s1jax.checkpoint/1"
ARRAYS, MANIFEST = "arrays", "manifest.json"


@dataclasses.dataclass(frozen=True)
class Saved:
    """A complete checkpoint: its step, folder, validation loss (None if none was taken) and hashes by file."""

    step: int
    folder: pathlib.Path
    loss: float | None
    files: dict[str, tuple[int, str]]


class Damaged(Exception):
    """A checkpoint is not what was written; the message says what is wrong with which file."""


def saved(root: pathlib.Path) -> list[Saved]:
    """The checkpoints of a run that have a readable manifest, oldest first. Their files are not read."""
    found = []
    for folder in _folders(root):
        try:
            found.append(read_manifest(folder))
        except Damaged:
            continue
    return found


def _folders(root: pathlib.Path) -> list[pathlib.Path]:
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name.isdigit())


def read_manifest(folder: pathlib.Path) -> Saved:
    """What a checkpoint's manifest says. Raises Damaged when it is missing, unreadable or altered."""
    path = folder / MANIFEST
    if not path.is_file():
        raise Damaged(f"{MANIFEST} is missing (the run ended while it was written)")
    try:
        data = json.loads(path.read_bytes())
        digest = data.pop("sha256")
        files = {name: (int(size), str(sha)) for name, (size, sha) in data["files"].items()}
        found = Saved(int(data["step"]), folder, data["loss"], files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{MANIFEST} cannot be read ({type(error).__name__})") from None
    if digest != _digest(data):
        raise Damaged(f"{MANIFEST} is not what was written (its hash differs)")
    return found


def verify(checkpoint: Saved) -> None:
    """Read every file of a checkpoint against its manifest. Raises Damaged, naming the first file that differs."""

    def check(item: tuple[str, tuple[int, str]]) -> str | None:
        name, (size, sha) = item
        path = checkpoint.folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, {size} were written"
        return None if _hash(path) == sha else f"{name} is not what was written (its hash differs)"

    with concurrent.futures.ThreadPoolExecutor() as pool:
        for wrong in pool.map(check, sorted(checkpoint.files.items())):
            if wrong:
                raise Damaged(wrong)


def _hash(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


class Store:
    """Writes the checkpoints of one run. One save is under way at a time; `save` waits for the one before.

    Args:
      root: folder of the checkpoints.
      keep: how many of the newest stay; the one with the best validation loss stays too.
    """

    def __init__(self, root: pathlib.Path, keep: int) -> None:
        if keep < 1:
            raise BadInput(f"save.keep={keep}; at least 1 checkpoint must stay")
        self._root = root.absolute()
        self._keep = keep
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._pending: list[concurrent.futures.Future[None]] = []

    def save(self, step: int, state: Any, loss: float | None = None) -> None:
        """Begin to save. When it returns, the arrays are on the host and may be donated.

        On several hosts all call it. An error of an earlier save is raised here or in `wait`.
        """
        self.wait()
        folder = self._root / f"{step:08d}"
        if jax.process_index() == 0 and folder.exists():
            shutil.rmtree(folder)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"checkpoint {step}")
        context = ocp.Context()
        context.array.saving.use_compression = False
        with context:
            response = ocp.save_async(str(folder / ARRAYS), state)
        self._pending.append(self._pool.submit(self._finish, response, folder, step, loss))

    def _finish(self, response: ocp.AsyncResponse, folder: pathlib.Path, step: int, loss: float | None) -> None:
        response.result()
        if jax.process_index() != 0:
            return
        names = sorted(path.relative_to(folder).as_posix() for path in (folder / ARRAYS).rglob("*") if path.is_file())
        with concurrent.futures.ThreadPoolExecutor() as pool:
            hashes = pool.map(_hash, [folder / name for name in names])
        files = {name: [(folder / name).stat().st_size, sha] for name, sha in zip(names, hashes, strict=True)}
        data = {"format": FORMAT, "step": step, "loss": loss, "files": files}
        write_json(folder / MANIFEST, {**data, "sha256": _digest(data)})
        for old in superseded(saved(self._root), self._keep):
            shutil.rmtree(old.folder)

    def newest(self) -> Saved | None:
        """The newest complete checkpoint."""
        return next(reversed(saved(self._root)), None)

    def wait(self) -> None:
        """Until nothing is under way. Raises what the save raised."""
        while self._pending:
            self._pending.pop().result()

    def close(self) -> None:
        """Wait and stop the thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()


def superseded(checkpoints: list[Saved], keep: int) -> list[Saved]:
    """Those that are neither among the newest `keep` nor the best by validation loss (the earliest of equals)."""
    measured = [checkpoint for checkpoint in checkpoints if checkpoint.loss is not None]
    best = min(measured, key=lambda checkpoint: (checkpoint.loss, checkpoint.step), default=None)
    stay = {checkpoint.step for checkpoint in checkpoints[-keep:]} | ({best.step} if best else set())
    return [checkpoint for checkpoint in checkpoints if checkpoint.step not in stay]


def newest_intact(root: pathlib.Path, say: Callable[[str], None]) -> Saved | None:
    """The newest checkpoint whose every file is as written; None where there is none at all.

    Damaged ones are named in one line each and moved aside. On several hosts all get the first one's answer.

    Raises:
      BadInput: there are checkpoints, and all are damaged.
    """
    chosen = _choose(root, say) if jax.process_index() == 0 else None
    if jax.process_count() == 1:
        return chosen
    step = int(multihost_utils.broadcast_one_to_all(np.int64(-1 if chosen is None else chosen.step)))
    return None if step < 0 else read_manifest(root / f"{step:08d}")


def _choose(root: pathlib.Path, say: Callable[[str], None]) -> Saved | None:
    is_any_complete = False
    for folder in reversed(_folders(root)):
        try:
            checkpoint = read_manifest(folder)
            verify(checkpoint)
        except Damaged as wrong:
            is_any_complete = is_any_complete or (folder / MANIFEST).exists()
            aside = folder.with_name(f"{folder.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            say(f"checkpoint {int(folder.name)} is passed over: {wrong}; it is now {aside.name}")
        else:
            return checkpoint
    if is_any_complete:
        raise BadInput(f"every checkpoint in {root} is damaged; remove the folder to begin anew")
    return None


def restore(checkpoint: Saved, abstract: Any) -> Any:
    """The state of a checkpoint, placed as `abstract` (`jax.ShapeDtypeStruct` with shardings), bit by bit as saved."""
    return ocp.load(str(checkpoint.folder.absolute() / ARRAYS), abstract)
