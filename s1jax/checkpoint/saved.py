"""Training checkpoints that are on disk: which there are, what is damaged, and how one becomes a state again.

ROOT/00000040/arrays/...       Orbax, one or more hosts
ROOT/00000040/manifest.json    written last: a checkpoint without it is not one
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from s1jax.checkpoint.fingerprint import differing
from s1jax.config import BadInput
from s1jax.parallel import hosts
from s1jax.runs import places

FORMAT = "s1jax.checkpoint/1"
ARRAYS, MANIFEST = "arrays", "manifest.json"
HASHED_BYTES = 64 * 2**20  # larger files hold values, which are checked when they are restored: they are read once


@dataclasses.dataclass(frozen=True)
class Saved:
    """A complete checkpoint.

    Attributes:
      step: after which it was made.
      folder: where it lies.
      loss: the validation loss there; None if none was taken.
      files: size and SHA-256 of each file.
      arrays: the fingerprint of each array by its path in the state (`checkpoint.fingerprint`).
    """

    step: int
    folder: Any
    loss: float | None
    files: dict[str, tuple[int, str]]
    arrays: dict[str, str]


class Damaged(Exception):
    """A checkpoint is not what was written; the message says what is wrong with which file or array."""


class Unfinished(Damaged):
    """A checkpoint whose manifest was never written."""


def saved(root: Any) -> list[Saved]:
    """The checkpoints of a run that have a readable manifest, oldest first. Their files are not read."""
    found = []
    for folder in step_folders(root):
        try:
            found.append(read_manifest(folder))
        except Damaged:
            continue
    return found


def step_folders(root: Any) -> list[Any]:
    """The folders of all saves, complete or not, oldest first."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.name.isdigit() and path.is_dir())


def read_manifest(folder: Any) -> Saved:
    """What a checkpoint's manifest says. Raises Damaged when it is missing, unreadable or altered."""
    path = folder / MANIFEST
    if not path.is_file():
        raise Unfinished(f"{MANIFEST} is missing (the run ended while it was written)")
    try:
        data = json.loads(path.read_bytes())
        said = data.pop("sha256")
        files = {name: (int(size), str(sha)) for name, (size, sha) in data["files"].items()}
        found = Saved(int(data["step"]), folder, data["loss"], files, dict(data.get("arrays", {})))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{MANIFEST} cannot be read ({type(error).__name__})") from None
    if said != digest(data):
        raise Damaged(f"{MANIFEST} is not what was written (its hash differs)")
    return found


def digest(data: Mapping[str, Any]) -> str:
    """SHA-256 of what a manifest says."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def hash_file(path: Any) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sizes(checkpoint: Saved) -> None:
    """Whether every file is there with its size; none is opened. Raises Damaged, naming the first that is not."""
    for name, (size, _) in sorted(checkpoint.files.items()):
        path = checkpoint.folder / name
        if not path.is_file():
            raise Damaged(f"{name} is missing")
        if (found := places.size(path)) != size:
            raise Damaged(f"{name} has {found} bytes, {size} were written")


def verify(checkpoint: Saved, *, up_to: int | None = None) -> None:
    """Read every file of a checkpoint, or those of at most `up_to` bytes, against its manifest.

    Raises:
      Damaged: names the first file that is missing, of another size, or differs.
    """
    check_sizes(checkpoint)
    items = [item for item in sorted(checkpoint.files.items()) if up_to is None or item[1][0] <= up_to]

    def check(item: tuple[str, tuple[int, str]]) -> str | None:
        name, (_, sha) = item
        return None if hash_file(checkpoint.folder / name) == sha else name

    with concurrent.futures.ThreadPoolExecutor() as pool:
        for wrong in pool.map(check, items):
            if wrong:
                raise Damaged(f"{wrong} is not what was written (its hash differs)")


def superseded(checkpoints: list[Saved], keep: int) -> list[Saved]:
    """Those that are neither among the newest `keep` nor the best by validation loss (the earliest of equals)."""
    measured = [checkpoint for checkpoint in checkpoints if checkpoint.loss is not None]
    best = min(measured, key=lambda checkpoint: (checkpoint.loss, checkpoint.step), default=None)
    stay = {checkpoint.step for checkpoint in checkpoints[-keep:]} | ({best.step} if best else set())
    return [checkpoint for checkpoint in checkpoints if checkpoint.step not in stay]


def restore(checkpoint: Saved, abstract: Any, *, in_part: bool = False) -> Any:
    """The state of a checkpoint, bit by bit as saved; each file is read once.

    Args:
      abstract: its tree of `jax.ShapeDtypeStruct` with shardings.
      in_part: `abstract` is a dict of some of the state's fields, and nothing else is read.

    Raises:
      Damaged: what was read is not what was written.
    """
    path = str(places.absolute(checkpoint.folder) / ARRAYS)
    try:
        state = _load_part(path, abstract) if in_part else ocp.load(path, abstract)
    except (ValueError, OSError, KeyError) as error:
        raise Damaged(f"its arrays cannot be read ({' '.join(str(error).split())[:200]})") from error
    if (wrong := differing(state, checkpoint.arrays)) is not None:
        raise Damaged(f"array {wrong} is not what was written (its fingerprint differs)")
    return state


def _load_part(path: str, abstract: Any) -> Any:
    """Orbax finds parts by dicts of names; it does not take trees with None in them."""
    named = [(tuple(map(_name, keys)), x) for keys, x in jax.tree_util.tree_leaves_with_path(abstract)]
    wanted: dict[str, Any] = {}
    for (*names, last), x in named:
        functools.reduce(lambda node, name: node.setdefault(name, {}), names, wanted)[last] = x
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        found = ocp.load(path, wanted)
    leaves = [functools.reduce(operator.getitem, names, found) for names, _ in named]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _name(key: Any) -> str:
    return jax.tree_util.keystr((key,), simple=True)


def resume(root: Any, abstract: Callable[[Saved], Any], say: Callable[[str], None]) -> tuple[Saved, Any] | None:
    """The newest checkpoint that is as it was written, and its state; None where there is none at all.

    Saves that were never finished are removed. A damaged checkpoint is named in one line and moved aside when an older
    one is as it was; one stays so, those of earlier starts go. On several hosts all call it and get the same one.

    Args:
      abstract: what is to be restored of a checkpoint, as `restore` has it.

    Raises:
      BadInput: there are checkpoints, and all are damaged; they are left as they are.
    """
    steps = hosts.of_first(lambda: _finished(root, say))
    reasons: dict[int, str] = {}
    for step in reversed(steps):
        wrong = hosts.of_first(lambda step=step: _wrong(root / f"{step:08d}"))
        state, checkpoint = None, None
        if wrong is None:
            checkpoint = read_manifest(root / f"{step:08d}")
            try:
                state = restore(checkpoint, abstract(checkpoint))
            except Damaged as error:
                wrong = str(error)
            wrong = next((other for other in hosts.gather(wrong) if other), None)
        if wrong is None and checkpoint is not None:
            if jax.process_index() == 0:
                _set_aside(root, reasons, say)
            return checkpoint, state
        reasons[step] = str(wrong)
    if reasons:
        why = "; ".join(f"step {step}: {reason}" for step, reason in list(reasons.items())[:3])
        raise BadInput(f"every checkpoint in {root} is damaged ({why}); remove the folder to begin anew")
    return None


def _finished(root: Any, say: Callable[[str], None]) -> list[int]:
    """Steps of the finished saves, oldest first; the others, nothing of which can be used, are removed."""
    steps = []
    for folder in step_folders(root):
        if (folder / MANIFEST).is_file():
            steps.append(int(folder.name))
        else:
            say(f"the save of step {int(folder.name)} was not finished; it is removed")
            places.remove(folder)
    for old in sorted(root.glob("*.damaged"))[:-1]:
        places.remove(old)
    return steps


def _wrong(folder: Any) -> str | None:
    """What is wrong with a checkpoint, as far as can be seen without reading its large files."""
    try:
        checkpoint = read_manifest(folder)
        # One of a version that had no fingerprints is read as a whole.
        verify(checkpoint, up_to=HASHED_BYTES if checkpoint.arrays else None)
    except Damaged as wrong:
        return str(wrong)
    return None


def _set_aside(root: Any, reasons: Mapping[int, str], say: Callable[[str], None]) -> None:
    """Name the damaged checkpoints; the newest of them stays under another name."""
    for number, (step, reason) in enumerate(reasons.items()):
        folder = root / f"{step:08d}"
        if number == 0:
            for old in root.glob("*.damaged"):
                places.remove(old)
            aside = folder.with_name(f"{folder.name}.damaged")
            folder.rename(aside)
            say(f"checkpoint {step} is passed over: {reason}; it is now {aside.name}")
        else:
            places.remove(folder)
            say(f"checkpoint {step} is passed over: {reason}; it is removed")
