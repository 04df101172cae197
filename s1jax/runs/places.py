"""Where a run reads and writes: a local folder, or an object store under `gs://`. No JAX.

A path of an object store is an `etils.epath.Path`, which has the methods of a `pathlib.Path`; what differs (objects
cannot be appended to or renamed, but take their place at once) is dealt with here.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import IO, Any

from s1jax.config import BadInput

STORES = ("gs",)
FULL = re.compile("ENOSPC|No space left on device|EDQUOT|[Qq]uota exceeded")
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")


class DiskFull(OSError):
    """There is no room for what was to be written; the message is a line that says for what."""


def is_full(error: BaseException) -> bool:
    """Whether an error, or what it came from, says that a disk or a quota is full."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, DiskFull) or (isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT)):
            return True
        if FULL.search(str(seen)):  # libraries that are not Python's own say it in words
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextlib.contextmanager
def room_for(path: Any) -> Iterator[None]:
    """Name the file for which there was no room. Raises DiskFull."""
    try:
        yield
    except OSError as error:
        if not is_full(error) or isinstance(error, DiskFull):
            raise
        raise DiskFull(
            f"the disk is full: {path} could not be written; what was finished is saved, free space and start the "
            "same command again"
        ) from error


def cache_folder() -> pathlib.Path:
    """Where the user keeps what can be made again."""
    given = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path.home() / ".cache" if given is None else pathlib.Path(given)) / "s1jax"


def place(path: str | os.PathLike) -> Any:
    """A local `pathlib.Path`, or the path of an object store.

    Raises:
      BadInput: the store of another service, or `gs://` without the package that reaches it.
    """
    if not isinstance(path, (str, pathlib.PurePath)):
        path = os.fspath(path)
    if isinstance(path, pathlib.PurePath) and not is_remote(path):
        return pathlib.Path(path)
    found = SCHEME.match(str(path))
    if found is None:
        return pathlib.Path(path)
    scheme = found[1]
    if scheme not in STORES:
        raise BadInput(
            f"{path}: paths are local or gs://, {scheme}:// is neither; mount that store, or write to a folder and "
            "upload it"
        )
    if not str(path).startswith(f"{scheme}://") or len(str(path)) <= len(scheme) + 3:
        raise BadInput(f"{path} names no bucket; write {scheme}://BUCKET/FOLDER")
    return _remote(str(path))


def _remote(path: str) -> Any:
    try:
        import fsspec.config
        import gcsfs  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise BadInput(f"{path}: gs:// needs the package gcsfs; install s1jax[gcs]") from None
    from etils import epath

    # Listings are asked for anew: another process may have written since.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    return epath.Path(path)


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is one of an object store."""
    return str(path).startswith(tuple(f"{scheme}://" for scheme in STORES))


def absolute(path: Any) -> Any:
    """The path from the root; one of an object store is already."""
    return path if is_remote(path) else path.absolute()


def size(path: Any) -> int:
    """Bytes of a file."""
    return path.stat().length if is_remote(path) else path.stat().st_size


def files(folder: Any) -> Iterator[Any]:
    """Every file below a folder; none where the folder is missing."""
    if not is_remote(folder):
        yield from (path for path in folder.rglob("*") if path.is_file())
        return
    system, root = _system(folder)
    for name in system.find(root):
        yield place(f"gs://{name}")


def remove(path: Any) -> None:
    """A file, or a folder with all that is in it; nothing where it is missing."""
    if is_remote(path):
        system, root = _system(path)
        for name in system.find(root):
            system.rm_file(name)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Any) -> Iterator[IO[str]]:
    """A text file to write to that takes its place when the context ends without an error, on disk and as a whole.

    Raises:
      DiskFull: there is no room; the file that had the name stays.
    """
    if is_remote(path):
        text = io.StringIO()
        yield text
        _system(path)[0].pipe_file(str(path), text.getvalue().encode("utf-8"))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_name(f".{path.name}.{os.getpid()}")
    neighbour.unlink(missing_ok=True)
    try:
        with room_for(path), neighbour.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        neighbour.unlink(missing_ok=True)
        raise
    os.replace(neighbour, path)


def write_json(path: str | os.PathLike, data: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part: to a neighbour, then renamed."""
    path = place(path)
    with writing(path) as file:
        file.write(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def write_bytes(path: Any, data: bytes) -> None:
    """Write a small file; it may be seen in part."""
    if is_remote(path):
        _system(path)[0].pipe_file(str(path), data)
    else:
        path.write_bytes(data)


def upload(source: pathlib.Path, target: Any) -> None:
    """A local file as an object, which is there as a whole or not at all."""
    _system(target)[0].put_file(str(source), str(target))


def names(folder: Any) -> list[str]:
    """Every object below a folder of an object store, named from there."""
    system, root = _system(folder)
    return sorted(name[len(root.rstrip("/")) + 1 :] for name in system.find(root) if name != root)


def read_whole(path: Any) -> bytes:
    """An object with the parts that were appended to it (`s1jax.runs.mirror`). Raises FileNotFoundError for none."""
    system, root = _system(path)
    parts = sorted(system.find(f"{root}.parts"))
    try:
        data = system.cat_file(root)
    except FileNotFoundError:
        if not parts:
            raise
        data = b""
    for part in parts:
        if int(part.rpartition("/")[2]) == len(data):
            data += system.cat_file(part)
    return data


def fetched(path: str | os.PathLike) -> pathlib.Path:
    """A local path as it is; of an object store a local copy of the file or folder, made anew when it has changed.

    Raises:
      BadInput: there is nothing of that name.
    """
    found = place(path)
    if not is_remote(found):
        return found
    system, root = _system(found)
    root = root.rstrip("/")
    listing = system.find(root, detail=True) | system.find(f"{root}.parts", detail=True)
    if not listing:
        raise BadInput(f"{path} does not exist; give a file or a folder that is there")
    facts = [(name, *(entry.get(key) for key in ("size", "etag", "generation"))) for name, entry in listing.items()]
    cache = cache_folder() / "fetched"
    kept = cache / hashlib.sha256(repr([str(path), sorted(facts, key=repr)]).encode()).hexdigest()[:16]
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        making = pathlib.Path(tempfile.mkdtemp(dir=cache))
        try:
            if root in listing or any(name.startswith(f"{root}.parts/") for name in listing):
                (making / found.name).write_bytes(read_whole(found))
            else:
                for name in listing:
                    target = making / found.name / name[len(root.rstrip("/")) + 1 :]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    system.get_file(name, str(target))
            with contextlib.suppress(OSError):  # another process has just made it
                making.rename(kept)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return kept / found.name


def _system(path: Any) -> tuple[Any, str]:
    import fsspec.core

    return fsspec.core.url_to_fs(str(path), **({"finalize_on_close": True} if is_remote(path) else {}))
