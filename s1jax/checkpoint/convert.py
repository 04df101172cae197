"""`s1jax convert`: a Hugging Face folder to Orbax or back, one tensor after another, without holding the model.

The target appears under its name when it is complete. A conversion that was killed leaves only a hidden neighbour,
which the same command removes before it starts again.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import yaml

from s1jax.checkpoint import contents, files, layout, orbax, training
from s1jax.checkpoint.entry import Entry, Source
from s1jax.checkpoint.files import Pending
from s1jax.checkpoint.folder import carry, close_partial, config_json, fetch, open_partial
from s1jax.checkpoint.hf import FILE_BYTES, open_source
from s1jax.config import BadInput, Positive, by_content, free, to_dict
from s1jax.records import write_json
from s1jax.runs import fingerprint, places
from s1jax.runs.folder import check_run, open_run
from s1jax.runs.lock import locked
from s1jax.runs.mirror import mirrored

RECEIPT = "run.json"
SMALL_BYTES = 64 * 2**20
AHEAD_BYTES = 512 * 2**20  # of tensors held at once, where none is larger: one is read while another is written


@dataclasses.dataclass(frozen=True)
class ConvertRun:
    """What `s1jax convert` is told.

    Attributes:
      source: a Hugging Face folder or hub id, a folder that `convert` wrote, or a checkpoint of a training run
        (`OUT/checkpoints/00000315`).
      target: folder to be written.
      to: `hf` (safetensors) or `orbax`.
      dtype: type of every tensor; null keeps each tensor's own.
      file_bytes: size at which a new safetensors file begins.
    """

    source: str = by_content()
    target: str = free()
    to: Literal["hf", "orbax"] = "orbax"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    file_bytes: Positive = FILE_BYTES

    @property
    def out(self) -> str:
        return self.target


def run(config: ConvertRun) -> pathlib.Path:
    """Convert, and return the target's folder. A target that this very conversion has finished is left as it is.

    Raises:
      BadInput: the source is damaged or unsupported, or the target holds something else.
    """
    if config.file_bytes < 1:
        raise BadInput(f"file_bytes={config.file_bytes}; it must be at least 1")
    _refuse_own_source(config)
    target = places.absolute(places.place(config.target))
    with locked(target, beside=True):
        if not places.is_remote(target):
            return _converted(config, target)
        with mirrored(target) as local:  # its config.json and run.json come last
            _converted(config, local)
        return target


def _refuse_own_source(config: ConvertRun) -> None:
    target, source = (pathlib.Path(path).expanduser().absolute() for path in (config.target, config.source))
    if not config.target.strip() or target == source or target in source.parents or source in target.parents:
        raise BadInput(
            f"target={config.target!r} is, holds or lies in source={config.source}; give a folder of its own"
        )


def _converted(config: ConvertRun, target: pathlib.Path) -> pathlib.Path:
    if (target / RECEIPT).is_file():
        _check_complete(config, target)
        _say(f"{target} is complete")
        return target
    given = fetch(config.source)
    is_trained = training.is_one(given)
    source = training.scan(given) if is_trained else open_source(given)
    partial = open_partial(target, replace=False)
    start = time.monotonic()
    hidden = dataclasses.replace(config, target=str(partial))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        read = pool.submit(contents.of_model, config.source)  # hashed while it is converted
        open_run(hidden, device="none: tensors pass through host memory")
        (partial / "config.yaml").write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")
        written = _write(source, partial, config)
        carry(source.folder, partial)
        write_json(partial / "config.json", _config_json(source, config.dtype, is_trained=is_trained))
        receipt = json.loads((partial / RECEIPT).read_text(encoding="utf-8"))
        made_from = {"source": dataclasses.asdict(read.result())}
        write_json(partial / RECEIPT, {**receipt, "contents": made_from, "written": _written(config, partial)})
    close_partial(partial, target)
    seconds = time.monotonic() - start
    _say(f"{target}: {written / 1e9:.2f} GB in {seconds:.1f} s, {written / 1e6 / seconds:.0f} MB/s")
    return target


def _written(config: ConvertRun, folder: pathlib.Path) -> dict[str, str]:
    """What tells whether a file of a conversion is as it was written; those that tell of the run are left out.

    SHA-256 of small files, size and time of large ones: reading tensors once more would take as long as writing them.
    A copy from an object store has a time of its own.
    """
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in (RECEIPT, "config.yaml")]
    small = [path for path in paths if path.stat().st_size <= SMALL_BYTES]
    found = dict(fingerprint.of_files(str(folder), small, folder).files)
    for path in set(paths) - set(small):
        size, time_ns = path.stat().st_size, path.stat().st_mtime_ns
        when = "" if places.is_remote(config.target) else f", {time_ns} ns"
        found[path.relative_to(folder).as_posix()] = f"{size} bytes{when}"
    return found


def _check_complete(config: ConvertRun, target: pathlib.Path) -> None:
    """A target that holds a conversion holds this one, from this source, and all that was written.

    A source that is no longer there is not asked after.

    Raises:
      BadInput: it does not.
    """
    try:
        receipt = json.loads((target / RECEIPT).read_text(encoding="utf-8"))
        read, written = fingerprint.Content(**receipt["contents"]["source"]), dict(receipt["written"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{target / RECEIPT} cannot be read ({error!r}); give another target") from None
    with contextlib.suppress(BadInput):
        read = contents.of_model(config.source)
    check_run(config, target, {"source": read})
    now = _written(config, target)
    changed = [name for name in {**written, **now} if written.get(name) != now.get(name)]
    if changed:
        what = "is gone" if changed[0] not in now else "is not as it was written"
        raise BadInput(
            f"{target} holds this conversion, but {changed[0]} {what}; remove the folder and convert again, or give "
            "another target"
        )


def _config_json(source: Source, dtype: str | None, *, is_trained: bool) -> dict[str, Any]:
    """The source's own, word for word where the type stays; a trained model's type need not be that of its base."""
    named = dtype or (source.dtypes[source.entries[0].key].name if is_trained else None)
    return config_json(source.config, source.folder, {} if named is None else {"dtype": named})


def _write(source: Source, folder: pathlib.Path, config: ConvertRun) -> int:
    def held(entry: Entry) -> np.dtype:
        return source.dtypes[entry.key] if config.dtype is None else np.dtype(config.dtype)

    def size(entry: Entry) -> int:
        return math.prod(entry.shape) * held(entry).itemsize

    by_name = {entry.name: entry for entry in source.entries}
    if config.to == "hf":
        by_name |= {copy: by_name[name] for copy, name in source.copies.items()}
    entries = list(by_name.values())
    tasks = [lambda entry=entry: source.read(entry, tuple(slice(0, n) for n in entry.shape)) for entry in entries]
    values = ahead(tasks, [size(entry) for entry in entries])
    if config.to == "orbax":
        typed = (value.astype(held(entry), copy=False) for entry, value in zip(entries, values, strict=True))
        orbax.write(folder, zip(entries, typed, strict=True), source.copies)
    else:
        pending = [
            Pending(name, entry.file_shape, held(entry), lambda e=entry: layout.to_file(e, next(values), held(e)))
            for name, entry in by_name.items()
        ]
        files.write(folder, pending, file_bytes=config.file_bytes)
    return sum(size(entry) for entry in entries)


def ahead(tasks: Sequence[Callable[[], np.ndarray]], sizes: Sequence[int]) -> Iterator[np.ndarray]:
    """Results of `tasks` in order; the next one runs in a thread while this one is used, if both are small enough."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        upcoming: concurrent.futures.Future[np.ndarray] | None = None
        for number, task in enumerate(tasks):
            value = task() if upcoming is None else upcoming.result()
            upcoming = None
            if number + 1 < len(tasks) and sizes[number] + sizes[number + 1] <= AHEAD_BYTES:
                upcoming = pool.submit(tasks[number + 1])
            yield value


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
