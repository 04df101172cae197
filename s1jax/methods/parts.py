"""Rows of one file that several engines write, in one process or in many: a part for each engine, merged at the end.

    completions.jsonl                one engine appends to it
    completions.part-00002.jsonl     of several engines, what number 2 has finished; gone when all are merged

A part has one writer, so nothing is lost whoever is killed, and a run goes on with any other number of engines: what
was finished is in the file or in some part.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from s1jax.checkpoint import contents
from s1jax.config import BadInput, to_dict
from s1jax.parallel import hosts
from s1jax.parallel.folder import opened
from s1jax.parallel.mesh import MeshConfig
from s1jax.records import JsonlWriter
from s1jax.runs import places
from s1jax.runs.fingerprint import Content
from s1jax.runs.folder import identity

Key = tuple[str, int]
POLL_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Share:
    """The engines of this process: `count` of them from number `first` on, of `total` in all processes."""

    first: int = 0
    count: int = 1
    total: int = 1

    def engine_of(self, id: str) -> int | None:
        """Which engine of this process, from 0, completes the rows of a prompt; None: one of another process."""
        index = assign_engine(id, self.total) - self.first
        return index if 0 <= index < self.count else None


def assign_engine(id: str, n_engines: int) -> int:
    """Which of `n_engines` engines completes the rows of a prompt: a hash of its id, the same in every run."""
    return int.from_bytes(hashlib.sha256(id.encode("utf-8")).digest()[:8], "big") % n_engines


def share_of(mesh: MeshConfig) -> Share:
    """This process's engines: `mesh.data` of `mesh.tensor` devices each, the same number in every process.

    Raises:
      BadInput: other mesh axes, more devices than there are, or a number of engines that the processes do not divide.
    """
    if mesh.context > 1 or mesh.fsdp > 1:
        raise BadInput(
            f"mesh.fsdp={mesh.fsdp}, mesh.context={mesh.context}: decoding shards over mesh.tensor and copies over "
            "mesh.data; leave the other two out"
        )
    processes, devices = jax.process_count(), len(jax.local_devices())
    total = devices // max(mesh.tensor, 1) * processes if mesh.data == -1 else mesh.data
    count = total // processes
    if mesh.tensor < 1 or count < 1 or total % processes or count * mesh.tensor > devices:
        raise BadInput(
            f"mesh.data={mesh.data} copies of mesh.tensor={mesh.tensor} devices do not fit {devices} devices in "
            f"each process, of which there are {processes}; give mesh.data a smaller multiple of {processes}, or -1"
        )
    return Share(jax.process_index() * count, count, total)


@contextlib.contextmanager
def run_folder(config: Any, read: Callable[[], Mapping[str, Content]] = dict) -> Iterator[pathlib.Path]:
    """The run's folder, opened and locked by the first process before any other goes on.

    Args:
      read: what the run reads beside model, tokenizer and template, by key; called by the first process.

    Raises:
      BadInput: it belongs to another run or is in use, or the processes were started with different configs.
    """
    if places.is_remote(config.out) and jax.process_count() > 1:
        raise hosts.agreed(
            BadInput(
                f"out={config.out}: the {jax.process_count()} processes of a generate or eval share a folder, "
                "which gs:// is not; start one process, or give a disk that all hosts share"
            )
        )
    hosts.agree({**identity(config), "mesh": to_dict(config.mesh)})

    def found() -> dict[str, Content]:
        texts = contents.of_texts(config.model, config.tokenizer or "", config.chat_template or "")
        return {"model": contents.of_model(config.model), **texts, **read()}

    # An error ends a process at once: the first one would wait for rows that nobody writes.
    with opened(config, device=device_name(), contents=found) as out, hosts.leaving_at_once():
        yield out


def device_name() -> str:
    """The devices at hand, in words."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"


def files_of(path: pathlib.Path) -> list[pathlib.Path]:
    """The file and its parts, as far as they are there."""
    return [*([path] if path.is_file() else []), *sorted(path.parent.glob(f"{path.stem}.part-*{path.suffix}"))]


class Parts:
    """Appends rows to a file, or, of several engines, to the parts that are this process's to write."""

    def __init__(self, path: pathlib.Path, share: Share) -> None:
        self._path, self._share = path, share
        self._writers: dict[int, JsonlWriter] = {}
        if share.total == 1:
            self._writer(0)

    def __enter__(self) -> "Parts":
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            writer.close()

    def write(self, row: Any) -> None:
        """Append a row of a prompt that is this process's; it is on disk when this returns."""
        self._writer(assign_engine(row.id, self._share.total)).write(row)

    def _writer(self, number: int) -> JsonlWriter:
        if number not in self._writers:
            name = f"{self._path.stem}.part-{number:05}{self._path.suffix}"
            self._writers[number] = JsonlWriter(self._path if self._share.total == 1 else self._path.with_name(name))
        return self._writers[number]

    def merge(self, keys: Sequence[Key]) -> bool:
        """Make one file of all rows, those of `keys` first and in that order, when all processes have written theirs.

        Returns: whether this is the process that goes on with the whole file: the first one. The others return when
          the file is there, so that none leaves while its peers still work.
        """
        self.__exit__()
        index, is_first, is_told = _Index(self._path), self._share.first == 0, False
        while missing := len(set(keys) - index.look().keys()) or (not is_first and len(files_of(self._path)) > 1):
            if is_first and not is_told:
                print(
                    f"waiting for {missing} rows of {self._path.name} by other processes", file=sys.stderr, flush=True
                )
                is_told = True
            time.sleep(POLL_SECONDS)
        in_order = [index.rows[key] for key in dict.fromkeys([*keys, *index.rows])]
        if is_first and (len(files_of(self._path)) > 1 or in_order != list(index.rows.values())):
            _rewrite(self._path, in_order)
        return is_first


class _Index:
    """Where each finished row stands: file, begin, end."""

    def __init__(self, path: pathlib.Path) -> None:
        self.rows: dict[Key, tuple[pathlib.Path, int, int]] = {}
        self._path = path
        self._read: dict[tuple[pathlib.Path, int], int] = {}

    def look(self) -> dict[Key, tuple[pathlib.Path, int, int]]:
        """Read what was added since. A line without its newline is still being written, or was cut off."""
        for part in files_of(self._path):
            with contextlib.suppress(FileNotFoundError), part.open("rb") as file:  # just merged by the first process
                this = part, os.fstat(file.fileno()).st_ino
                end = file.seek(self._read.get(this, 0))
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    begin, end = end, end + len(line)
                    row = json.loads(line)
                    self.rows.setdefault((row["id"], row["sample"]), (part, begin, end))
                self._read[this] = end
        return self.rows


def _rewrite(path: pathlib.Path, rows: Sequence[tuple[pathlib.Path, int, int]]) -> None:
    """All rows into a neighbour of the file, which then takes its place; only then the parts go."""
    parts, neighbour = files_of(path), path.with_name(f".{path.name}.merged")
    with contextlib.ExitStack() as stack:
        files = {part: stack.enter_context(part.open("rb")) for part in parts}
        merged = stack.enter_context(neighbour.open("wb"))
        for part, begin, end in rows:
            files[part].seek(begin)
            merged.write(files[part].read(end - begin))
        merged.flush()
        os.fsync(merged.fileno())
    os.replace(neighbour, path)
    for part in parts:
        if part != path:
            part.unlink()
