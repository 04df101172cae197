"""An out folder in an object store, as a local folder whose changes are written there.

Verbs append, rename and seek, which objects cannot; they work in a local folder, and a thread writes what they finish:

    metrics.jsonl                        the whole file, when it was written or rewritten as a whole
    metrics.jsonl.parts/000000001234     lines appended since, each part named by the byte at which it begins
    hf/..., report.json                  as they are; of a new folder its config.json comes last

A part counts if it begins where the file and the parts before it end, so a part left by a kill is never read twice.
Checkpoints are not mirrored: Orbax writes them itself.
"""

import contextlib
import os
import pathlib
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

from s1jax.runs import places

PUSH_SECONDS = 0.5
OURSELVES = "checkpoints"
LAST = ("config.json", "run.json")  # by these a reader sees that a folder is whole

FileState = tuple[int, int, int]


class Mirror:
    """One writer's copy of a folder.

    Args:
      remote: the folder in the object store.
      local: an empty local folder.
    """

    def __init__(self, remote: Any, local: pathlib.Path) -> None:
        self.remote, self.local = remote, local
        self._seen: dict[str, FileState] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.is_written = True

    def pull(self) -> None:
        """What is there, but for checkpoints; files and their parts become one."""
        names = [name for name in places.names(self.remote) if not name.startswith(f"{OURSELVES}/")]
        files = {name.partition(".parts/")[0] for name in names}
        for name in sorted(files):
            if pathlib.PurePath(name).name == ".lock":
                continue
            path = self.local / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(places.read_whole(self.remote / name))
            self._seen[name] = _state(path)

    def push(self) -> None:
        """Write what has changed since the last time. When it returns, it is there."""
        with self._lock:
            found = {name: _state(self.local / name) for name in self._names()}
            changed = [name for name, state in found.items() if self._seen.get(name) != state]
            for name in sorted(changed, key=lambda name: (pathlib.PurePath(name).name in LAST, name)):
                with contextlib.suppress(FileNotFoundError):  # renamed meanwhile: it is seen at the next turn
                    self._write(name, found[name])
            for name in self._seen.keys() - found.keys():
                places.remove(self.remote / name)
                places.remove(self.remote / f"{name}.parts")
                del self._seen[name]

    def _names(self) -> list[str]:
        found = []
        for folder, folders, files in os.walk(self.local):
            folders[:] = [name for name in folders if not name.startswith(".")]
            base = pathlib.Path(folder).relative_to(self.local)
            found += [(base / name).as_posix() for name in files if not name.startswith(".")]
        return found

    def _write(self, name: str, state: FileState) -> None:
        path, before = self.local / name, self._seen.get(name)
        is_longer = before is not None and before[0] == state[0] and before[1] < state[1]
        if name.endswith(".jsonl") and is_longer and before is not None:
            with path.open("rb") as file:
                file.seek(before[1])
                lines = file.read(state[1] - before[1])
            lines = lines[: lines.rfind(b"\n") + 1]  # one that is still being written waits
            if lines:
                places.write_bytes(self.remote / f"{name}.parts" / f"{before[1]:012d}", lines)
            self._seen[name] = (state[0], before[1] + len(lines), state[2])
        elif name.endswith(".jsonl"):
            with path.open("rb") as file:
                lines = file.read(state[1])  # no more: lines appended meanwhile begin a part where this ends
            lines = lines[: lines.rfind(b"\n") + 1]
            places.write_bytes(self.remote / name, lines)
            places.remove(self.remote / f"{name}.parts")
            self._seen[name] = (state[0], len(lines), state[2])
        else:
            places.upload(path, self.remote / name)
            self._seen[name] = state

    def keep_pushing(self) -> None:
        """Until `close`; a failure is said, and tried again."""
        while not self._over.wait(PUSH_SECONDS):
            try:
                self.push()
            except Exception as error:
                print(f"{self.remote} cannot be written now ({error}); tried again", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Write the rest."""
        self._over.set()
        self.is_written = False
        self.push()
        self.is_written = True


OPEN: list[Mirror] = []


def flush(folder: Any) -> None:
    """Until what stands in an out folder is in its object store; nothing to do for one that is local."""
    for mirror in OPEN:
        if mirror.local == folder:
            mirror.push()


@contextlib.contextmanager
def mirrored(remote: Any) -> Iterator[pathlib.Path]:
    """A local folder that holds what `remote` holds, and whose changes are written there until the context ends."""
    local = pathlib.Path(tempfile.mkdtemp(prefix="s1jax-"))
    mirror = Mirror(remote, local)
    try:
        mirror.pull()
        OPEN.append(mirror)
        threading.Thread(target=mirror.keep_pushing, daemon=True).start()
        try:
            yield local
        finally:
            OPEN.remove(mirror)
            mirror.close()
    finally:
        if mirror.is_written:
            shutil.rmtree(local, ignore_errors=True)
        else:
            print(f"{remote} lacks what was written last; all of it is kept in {local}", file=sys.stderr, flush=True)


def _state(path: pathlib.Path) -> FileState:
    """Which file it is, its bytes, and when it was written."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns
