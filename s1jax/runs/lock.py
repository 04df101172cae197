"""One run at a time in a folder."""

import contextlib
import fcntl
import json
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from s1jax.config import BadInput
from s1jax.runs import places

NAME = ".lock"
LEASE_SECONDS = float(os.environ.get("S1JAX_LEASE_SECONDS", "60"))
SETTLE_SECONDS = 1.0


@contextlib.contextmanager
def locked(folder: Any, *, beside: bool = False) -> Iterator[None]:
    """Keep other processes out of a run's folder; `folder/.lock` says who is in it.

    The lock ends with the process, however that ends, and is not inherited by its children. It holds on file systems
    with POSIX locks (local ones, NFS, Lustre); a process does not lock itself out.

    Args:
      beside: the lock lies beside the folder, which need not exist: `.folder.lock`.

    Raises:
      BadInput: another process is in it, or there can be no folder of that name.
    """
    folder = places.place(folder)
    if places.is_remote(folder):
        with _leased(folder):
            yield
        return
    path = folder.with_name(f".{folder.name}{NAME}") if beside else folder / NAME
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"out={folder} is a file; give the path of a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"out={folder} cannot be made ({error.strerror}); give the path of a folder") from None
    number = _open(path, folder)
    try:
        os.truncate(number, 0)
        os.pwrite(number, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(number)


@contextlib.contextmanager
def _leased(folder: Any) -> Iterator[None]:
    """The lock of an object store, where nothing ends with a process: its holder gives a sign of life every so often.

    One whose sign has not changed for `LEASE_SECONDS` is gone, and its lock is taken over.
    """
    path, me = folder / NAME, secrets.token_hex(8)
    first, end = _lease(path), time.monotonic() + LEASE_SECONDS
    while (found := _lease(path)) is not None and time.monotonic() < end:
        if found != first:
            raise BadInput(f"{folder} is in use by {_holder(found)}; wait for it, end it, or give another out folder")
        time.sleep(1.0)
    over = threading.Event()

    def sign(number: int) -> None:
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "token": me, "sign": number}
        places.write_bytes(path, json.dumps(holder).encode())

    def keep_signing() -> None:
        number = 0
        while not over.wait(LEASE_SECONDS / 6):
            number += 1
            with contextlib.suppress(Exception):  # a store's client has errors of its own kinds; the next may pass
                sign(number)

    sign(0)
    time.sleep(SETTLE_SECONDS)  # of two that came at once the later one has it
    if (found := _lease(path)) is not None and json.loads(found).get("token") != me:
        raise BadInput(f"{folder} is in use by {_holder(found)}; wait for it, end it, or give another out folder")
    thread = threading.Thread(target=keep_signing, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        places.remove(path)


def _lease(path: Any) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _open(path: pathlib.Path, folder: pathlib.Path) -> int:
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and path.stat().st_ino == os.fstat(number).st_ino:
                return number
        except (BlockingIOError, PermissionError):
            holder = _holder(os.pread(number, 4096, 0))
            os.close(number)
            raise BadInput(f"{folder} is in use by {holder}; wait for it, end it, or give another out folder") from None
        os.close(number)  # whoever held it has just left and taken the file away


def _holder(content: bytes) -> str:
    try:
        found = json.loads(content)
        return f"process {found['pid']} on {found['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
