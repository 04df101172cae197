"""One run at a time in a folder: who is in it, and every moment at which two could meet."""

import fcntl
import json
import os
import socket
import subprocess
import sys

import pytest

from s1jax.config import BadInput
from s1jax.runs import lock
from s1jax.runs.lock import locked

HOLDER = """
import sys
from s1jax.runs.lock import locked
with locked(sys.argv[1]):
    print("in", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that is in the folder; it leaves when it is told to."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "in\n"
    yield process
    process.kill()
    process.communicate()


def test_another_process_is_kept_out_and_told_by_whom(tmp_path, holder):
    before = set(os.listdir("/proc/self/fd"))
    says = f"{tmp_path} is in use by process {holder.pid} on {socket.gethostname()}; wait for it, end it, or give"
    for _ in range(3):
        with pytest.raises(BadInput) as error, locked(tmp_path):
            pytest.fail("two are in it")
        assert str(error.value).startswith(says)
    assert set(os.listdir("/proc/self/fd")) == before, "nothing stays open"
    holder.communicate("\n")
    with locked(tmp_path):
        pass
    assert not (tmp_path / ".lock").exists()


def test_the_lock_ends_with_its_process(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path):
        pass


def test_what_stands_in_the_file_is_whoever_is_in_the_folder(tmp_path):
    (tmp_path / ".lock").write_text("x" * 500)  # longer than what takes its place
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text()) == {"pid": os.getpid(), "host": socket.gethostname()}
    with locked(tmp_path):
        (tmp_path / ".lock").unlink()  # by hand
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 1}'])
def test_a_holder_that_has_not_said_who_it_is(tmp_path, monkeypatch, content):
    (tmp_path / ".lock").write_bytes(content)

    def taken(number, flags):
        assert flags == fcntl.LOCK_EX | fcntl.LOCK_NB
        raise BlockingIOError

    monkeypatch.setattr(lock.fcntl, "lockf", taken)
    with pytest.raises(BadInput, match="is in use by another process; wait"), locked(tmp_path):
        pass


@pytest.mark.parametrize("newcomer", [False, True], ids=["left", "left, and another came"])
def test_the_holder_leaves_between_open_and_lock(tmp_path, monkeypatch, newcomer):
    """Then the file that was opened is nobody's any more: the lock of it keeps nobody out."""
    path, lockf, stale = tmp_path / ".lock", fcntl.lockf, []
    path.write_text("of the holder")
    before = set(os.listdir("/proc/self/fd"))

    def leaves_first(number, flags):
        if not stale:
            stale.append(number)
            path.unlink()
            if newcomer:
                path.write_text("of the newcomer")
        lockf(number, flags)

    monkeypatch.setattr(lock.fcntl, "lockf", leaves_first)
    number = lock._open(path, tmp_path)
    assert os.fstat(number).st_ino == path.stat().st_ino, "it is the file that has the name"
    os.close(number)
    assert set(os.listdir("/proc/self/fd")) == before, "the one that was nobody's is closed"


def test_who_leaves_takes_the_file_away_before_the_lock_ends(tmp_path, monkeypatch):
    """The other way round a newcomer could lock the file in between, and lose its name to the one that leaves."""
    close, seen = os.close, []

    def watching(number):
        if os.readlink(f"/proc/self/fd/{number}").startswith(str(tmp_path / ".lock")):
            seen.append((tmp_path / ".lock").exists())
        close(number)

    with locked(tmp_path):
        monkeypatch.setattr(os, "close", watching)
    monkeypatch.undo()
    assert seen == [False]
