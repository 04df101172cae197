"""What a run was made from: SHA-256 of the files that it reads, so that a path alone never stands for its content.

A file is read whole once. Its hash is remembered beside its size, times and inode, in the user's cache folder.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from s1jax.config import BadInput
from s1jax.runs import places

SETTLED_SECONDS = 2.0  # a younger file may change again within one tick of the clock that its times are of


@dataclasses.dataclass(frozen=True)
class Content:
    """What was found behind one key of a config.

    Attributes:
      source: the path or hub id as it was given.
      files: SHA-256 of each file by its name; or of what was read, under a name that says what that is.
    """

    source: str
    files: Mapping[str, str]

    @property
    def digest(self) -> str:
        """One SHA-256 of all of it."""
        return of_value(dict(self.files))


def of_files(source: str, paths: Iterable[pathlib.Path], folder: pathlib.Path | None = None) -> Content:
    """The content of these files, named as they lie in `folder`, or by their last names.

    Raises:
      BadInput: a file that cannot be read, or that changes while it is read.
    """
    named = {path.relative_to(folder).as_posix() if folder else path.name: path for path in sorted(paths)}
    with _memory() as memory:
        return Content(source, {name: _of_file(path, memory) for name, path in named.items()})


def of_value(value: Any) -> str:
    """SHA-256 of a value that JSON can hold; keys in any order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


def difference(key: str, before: Mapping[str, str] | None, now: Content | None) -> str | None:
    """How the content behind `key` differs from what a run was begun with, in words; None where it does not."""
    if now is None:
        return f"{key} is not given now, and was"
    if before is None:
        return f"{key}={now.source} is given now, and was not"
    changed = [name for name in {**before, **now.files} if before.get(name) != now.files.get(name)]
    if not changed:
        return None
    name, more = changed[0], f", and {len(changed) - 1} more" if len(changed) > 1 else ""
    then, is_now = (files.get(name) for files in (before, now.files))
    if then is None or is_now is None:
        return f"{key}={now.source}: {name} {'is gone' if is_now is None else 'was not there'}{more}"
    return f"{key}={now.source}: {name} has changed (SHA-256 was {then[:12]}, is {is_now[:12]}){more}"


def _of_file(path: pathlib.Path, memory: sqlite3.Connection | None) -> str:
    path = path.resolve()
    try:
        state = _state(path)
        known = _recall(memory, state)
        if known is not None:
            return known
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        is_settled = time.time() - max(path.stat().st_mtime, path.stat().st_ctime) > SETTLED_SECONDS
        if _state(path) != state:
            raise BadInput(f"{path} changed while it was read; wait until it is written, then start again")
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); give a path that can") from None
    if is_settled:
        _remember(memory, state, found)
    return found


def _state(path: pathlib.Path) -> str:
    found = path.stat()
    return f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


@contextlib.contextmanager
def _memory() -> Iterator[sqlite3.Connection | None]:
    """Hashes that are known; None where the cache folder cannot be written: then every file is read again."""
    memory = None
    cache = places.cache_folder()
    with contextlib.suppress(OSError, sqlite3.Error):
        cache.mkdir(parents=True, exist_ok=True)
        memory = sqlite3.connect(cache / "fingerprints.sqlite", timeout=5)
        memory.execute("CREATE TABLE IF NOT EXISTS files (state TEXT PRIMARY KEY, sha256 TEXT)")
    try:
        yield memory
    finally:
        if memory is not None:
            memory.close()


def _recall(memory: sqlite3.Connection | None, state: str) -> str | None:
    if memory is not None:
        with contextlib.suppress(sqlite3.Error):
            row = memory.execute("SELECT sha256 FROM files WHERE state = ?", (state,)).fetchone()
            return None if row is None else row[0]
    return None


def _remember(memory: sqlite3.Connection | None, state: str, sha256: str) -> None:
    if memory is not None:
        with contextlib.suppress(sqlite3.Error), memory:
            memory.execute("INSERT OR REPLACE INTO files VALUES (?, ?)", (state, sha256))
