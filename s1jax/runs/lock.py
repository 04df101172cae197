"""One run at a time in a folder."""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator

from s1jax.config import BadInput

NAME = ".lock"


@contextlib.contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Keep other processes out of a run's folder; `folder/.lock` says who is in it.

    The lock ends with the process, however that ends, and is not inherited by its children. It holds on file systems
    with POSIX locks (local ones, NFS, Lustre); a process does not lock itself out.

    Raises:
      BadInput: another process is in it.
    """
    path = pathlib.Path(folder) / NAME
    number = _open(path)
    try:
        os.truncate(number, 0)
        os.pwrite(number, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(number)


def _open(path: pathlib.Path) -> int:
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and path.stat().st_ino == os.fstat(number).st_ino:
                return number
        except (BlockingIOError, PermissionError):
            holder = _holder(os.pread(number, 4096, 0))
            os.close(number)
            raise BadInput(
                f"{path.parent} is in use by {holder}; wait for it, end it, or give another out folder"
            ) from None
        os.close(number)  # whoever held it has just left and taken the file away


def _holder(content: bytes) -> str:
    try:
        found = json.loads(content)
        return f"process {found['pid']} on {found['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
