"""Training checkpoints as they are written: a whole pytree at a step, by Orbax in the background, with hashes.

    ROOT/00000040/arrays/...        Orbax, one or more hosts
    ROOT/00000040/parts/1.json      of several hosts, what number 1 has written and hashed; gone when all have
    ROOT/00000040/manifest.json     written last: a checkpoint without it is not one

Each process hashes the files that it wrote. Nothing waits for a hash but the manifest and `Store.wait`, after which a
checkpoint is whole in every process or in none. Knows nothing of models or optimizers; a state is any pytree of arrays.
"""

import concurrent.futures
import dataclasses
import json
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from s1jax.checkpoint.fingerprint import fingerprints
from s1jax.checkpoint.saved import ARRAYS, FORMAT, MANIFEST, Saved, digest, hash_file, saved, superseded
from s1jax.config import BadInput
from s1jax.parallel import hosts
from s1jax.records import write_json
from s1jax.runs import places
from s1jax.runs.places import DiskFull

PARTS = "parts"
POLL_SECONDS = 0.2
WAIT_SECONDS = 3600


@dataclasses.dataclass(frozen=True)
class UnderWay:
    """A save that has begun; `done` holds its end."""

    step: int
    folder: Any
    done: concurrent.futures.Future[None]


class Store:
    """Writes the checkpoints of one run. One save is under way at a time; `save` waits for the one before.

    Args:
      root: folder of the checkpoints.
      keep: how many of the newest stay; the one with the best validation loss stays too.
      wait_seconds: how long one process waits for another's part of a save.
      goes_on: a full disk is said, and the save is given up; otherwise it is raised.
      say: prints a line, from whichever process calls it.
    """

    def __init__(
        self,
        root: Any,
        keep: int,
        *,
        wait_seconds: float = WAIT_SECONDS,
        goes_on: bool = False,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        if keep < 1:
            raise BadInput(f"save.keep={keep}; at least 1 checkpoint must stay")
        self._root = places.absolute(root)
        self._keep, self._wait_seconds, self._goes_on, self._say = keep, wait_seconds, goes_on, say
        self._under_way: UnderWay | None = None
        self._is_said = False

    def save(self, step: int, state: Any, loss: float | None = None) -> None:
        """Begin to save. When it returns, the arrays are on the host and may be donated.

        On several hosts all call it. What an earlier save raised is raised here, in `check` or in `wait`.
        """
        self.wait()
        folder = self._root / f"{step:08d}"
        self._is_said = False
        self._under_way = UnderWay(step, folder, concurrent.futures.Future())
        try:
            hosts.of_first(lambda: _prepare(folder))
            arrays = fingerprints(state)
            context = ocp.Context()
            context.array.saving.use_compression = False
            context.asynchronous.timeout_secs = int(self._wait_seconds)
            with context:
                response = ocp.save_async(str(folder / ARRAYS), state)
        except Exception as error:  # raised, or passed over, where every process knows of it
            self._under_way.done.set_exception(error)
            return
        except BaseException as error:  # a second Ctrl-C: nobody shall wait for a save that never began
            self._under_way.done.set_exception(error)
            raise
        # A daemon: what waits for a process that is gone must not keep this one.
        arguments = (self._under_way, response, loss, arrays)
        threading.Thread(target=self._run, args=arguments, daemon=True, name=f"save of step {step}").start()

    def _run(self, under_way: UnderWay, *arguments: Any) -> None:
        try:
            self._finish(under_way, *arguments)
        except BaseException as error:
            _give_up(under_way.folder)
            under_way.done.set_exception(error)
        else:
            under_way.done.set_result(None)

    def _finish(
        self, under_way: UnderWay, response: ocp.AsyncResponse, loss: float | None, arrays: dict[str, str]
    ) -> None:
        response.result()
        folder = under_way.folder
        files = _hashes(folder)
        if jax.process_count() > 1:
            write_json(folder / PARTS / f"{jax.process_index()}.json", files)
            if jax.process_index() > 0:
                return
            files = self._all_parts(folder)
        data = {"format": FORMAT, "step": under_way.step, "loss": loss, "arrays": arrays, "files": files}
        write_json(folder / MANIFEST, {**data, "sha256": digest(data)})
        if jax.process_count() > 1:
            places.remove(folder / PARTS)
        for old in superseded(saved(self._root), self._keep):
            places.remove(old.folder)

    def _all_parts(self, folder: Any) -> dict[str, list[Any]]:
        """What all processes have written, once they have."""
        end, files = time.monotonic() + self._wait_seconds, {}
        for process in range(jax.process_count()):
            while (part := _part(folder, process)) == {}:
                if time.monotonic() > end:
                    raise TimeoutError(f"process {process} has not hashed its files after {self._wait_seconds} s")
                time.sleep(POLL_SECONDS)
            if part is None:
                raise RuntimeError(f"process {process} could not write its part")
            files |= part
        return dict(sorted(files.items()))

    def check(self) -> bool:
        """Whether nothing has gone wrong so far in this process.

        A failure is raised here by one process alone. Of several it is said here, and raised in all of them by `wait`,
        which they must call at the same step; False asks for that.
        """
        if self._under_way is None or not self._under_way.done.done():
            return True
        error = self._under_way.done.exception()
        if error is None:
            return True
        if jax.process_count() == 1:
            self.wait()
        elif not self._is_said:
            self._is_said = True
            self._say(_described(self._under_way.step, error))
        return self._goes_on and places.is_full(error)

    def newest(self) -> Saved | None:
        """The newest complete checkpoint."""
        return next(reversed(saved(self._root)), None)

    def wait(self) -> bool:
        """Until the save that is under way is whole, in every process. Raises what it raised in any of them.

        Returns: whether it is; not when it was given up (`goes_on`).

        Raises:
          DiskFull: there was no room; what was saved before is as it was.
        """
        if self._under_way is None:
            return True
        under_way, self._under_way = self._under_way, None
        error = self._ended(under_way)
        mine = None if error is None else (places.is_full(error), _described(under_way.step, error))
        failures = [tuple(failure) for failure in hosts.gather(mine) if failure]
        if not failures:
            return True
        if jax.process_index() == 0:
            places.remove(under_way.folder)
        is_full, reason = max(failures)  # a full disk says more than that another process failed
        if is_full and self._goes_on:
            if not self._is_said and jax.process_index() == 0:
                self._say(f"{reason}; training goes on without this checkpoint")
            return False
        if is_full:
            raise hosts.agreed(DiskFull(f"{reason}; what was saved before is as it was"))
        if error is not None and jax.process_count() == 1:
            raise error
        raise hosts.agreed(RuntimeError(reason))

    def _ended(self, under_way: UnderWay) -> BaseException | None:
        """What the save raised here. It is not waited for once another process has given up its part."""
        while True:
            try:
                return under_way.done.exception(POLL_SECONDS if jax.process_count() > 1 else None)
            except TimeoutError:
                for process in range(jax.process_count()):
                    if _part(under_way.folder, process) is None and not under_way.done.done():
                        return RuntimeError(f"process {process} could not write its part")

    def close(self) -> None:
        """Wait."""
        self.wait()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Wait; after an error only for this process's part, since the others may be gone."""
        if error is None:
            self.close()
        elif self._under_way is not None:
            self._under_way.done.exception()


def _prepare(folder: Any) -> None:
    """Nothing of an earlier save, and of several hosts a part for each, as a sign that it has not given up."""
    places.remove(folder)
    for process in range(jax.process_count() if jax.process_count() > 1 else 0):
        write_json(folder / PARTS / f"{process}.json", {})


def _part(folder: Any, process: int) -> dict[str, list[Any]] | None:
    """The files of a process; empty while it writes them, None where it has given up."""
    try:
        return json.loads((folder / PARTS / f"{process}.json").read_bytes())
    except FileNotFoundError:
        # The first process takes the parts away when the manifest is there.
        return {} if (folder / MANIFEST).is_file() else None


def _give_up(folder: Any) -> None:
    """Tell the others, by taking something away: on a full disk nothing can be written."""
    if jax.process_count() > 1:
        places.remove(folder / PARTS / f"{jax.process_index()}.json")


def _hashes(folder: Any) -> dict[str, list[Any]]:
    """Size and hash of the files that this process wrote: `{name: [bytes, SHA-256]}`.

    Orbax names what is a process's after it; all else the first one wrote.
    """
    paths = {str(path)[len(str(folder)) + 1 :]: path for path in places.files(folder / ARRAYS)}
    names = sorted(name for name in paths if _writer(name) == jax.process_index())
    with concurrent.futures.ThreadPoolExecutor() as pool:
        hashes = pool.map(hash_file, [paths[name] for name in names])
    return {name: [places.size(paths[name]), sha] for name, sha in zip(names, hashes, strict=True)}


def _writer(name: str) -> int:
    found = re.search(r"/(?:ocdbt\.)?process_(\d+)(?:/|$)", name)
    return int(found[1]) if found else 0


def _described(step: int, error: BaseException) -> str:
    reason = " ".join(str(error).split())[:200]
    if places.is_full(error):
        return f"the disk is full: the checkpoint of step {step} could not be written ({reason})"
    return f"the checkpoint of step {step} could not be written ({type(error).__name__}: {reason})"
