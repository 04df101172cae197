"""A run is known by what its files hold, read once, and not by where they lie."""

import dataclasses
import hashlib
import os
import pathlib

import pytest

from s1jax.checkpoint import contents
from s1jax.config import BadInput, by_content
from s1jax.runs import fingerprint, folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "s1jax" / "fingerprints.sqlite"


@pytest.fixture
def reads(monkeypatch):
    """Every file that is hashed."""
    seen, digest = [], hashlib.file_digest

    def spy(file, name):
        seen.append(pathlib.Path(file.name).name)
        return digest(file, name)

    monkeypatch.setattr(fingerprint.hashlib, "file_digest", spy)
    return seen


def aged(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute passes."""
    now = path.stat().st_ctime + 60
    monkeypatch.setattr(fingerprint.time, "time", lambda: now)


def test_a_file_is_read_once_until_it_changes(tmp_path, reads, monkeypatch):
    path = tmp_path / "weights"
    path.write_bytes(b"one" * 1000)
    first = fingerprint.of_files("here", [path])
    assert first.files == {"weights": hashlib.sha256(b"one" * 1000).hexdigest()} and first.source == "here"
    fingerprint.of_files("here", [path])
    assert len(reads) == 2  # too young to be remembered: a change within one tick of the clock would not show
    aged(path, monkeypatch)
    for _ in range(3):
        assert fingerprint.of_files("there", [path]).files == first.files
    assert len(reads) == 3
    times = path.stat()
    path.write_bytes(b"two" * 1000)  # as long, and dated back
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprint.of_files("here", [path]).files["weights"] == hashlib.sha256(b"two" * 1000).hexdigest()
    path.rename(tmp_path / "other")
    aged(tmp_path / "other", monkeypatch)
    fingerprint.of_files("here", [tmp_path / "other"])
    n = len(reads)
    assert fingerprint.of_files("here", [tmp_path / "other"]).files.keys() == {"other"} and len(reads) == n


def test_a_replaced_file_is_read_again(tmp_path, reads, monkeypatch):
    path, new = tmp_path / "a", tmp_path / "b"
    path.write_text("old")
    new.write_text("new")
    aged(path, monkeypatch)
    old = fingerprint.of_files("", [path]).digest
    new.replace(path)
    assert fingerprint.of_files("", [path]).digest != old and reads == ["a", "a"]


@pytest.mark.parametrize("broken", ["damaged", "not writable"])
def test_without_a_memory_every_file_is_read(tmp_path, cache, reads, monkeypatch, broken):
    if broken == "damaged":
        cache.parent.mkdir(parents=True)
        cache.write_bytes(b"this is no database" * 100)
    else:
        (tmp_path / "cache").write_text("a file")
    path = tmp_path / "a"
    path.write_text("text")
    aged(path, monkeypatch)
    assert fingerprint.of_files("", [path]) == fingerprint.of_files("", [path]) and len(reads) == 2


def test_files_that_cannot_be_read_or_are_being_written(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="gone cannot be read .No such file or directory.; give a path that can"):
        fingerprint.of_files("", [tmp_path / "gone"])
    path, digest = tmp_path / "a", hashlib.file_digest
    path.write_text("text")

    def slow(file, name):
        found = digest(file, name)
        path.write_text("text that grows")
        return found

    monkeypatch.setattr(fingerprint.hashlib, "file_digest", slow)
    with pytest.raises(BadInput, match="a changed while it was read; wait until it is written"):
        fingerprint.of_files("", [path])


def test_names_are_those_in_the_folder_and_their_order_does_not_count(tmp_path):
    (tmp_path / "sub").mkdir()
    paths = [tmp_path / "b", tmp_path / "sub" / "a"]
    for path in paths:
        path.write_text(path.name)
    found = fingerprint.of_files("x", paths, tmp_path)
    assert list(found.files) == ["b", "sub/a"]
    assert found.digest == fingerprint.of_files("y", paths[::-1], tmp_path).digest
    assert found.digest != fingerprint.of_files("x", paths[:1], tmp_path).digest
    assert fingerprint.of_value({"a": 1, "b": [2]}) == fingerprint.of_value({"b": [2], "a": 1})
    assert fingerprint.of_value([1, 2]) != fingerprint.of_value([2, 1])


@dataclasses.dataclass(frozen=True)
class Reads:
    out: str
    model: str = by_content("")
    rate: int = 1


def content(**files: str) -> dict[str, fingerprint.Content]:
    return {"model": fingerprint.Content("/models/a", files)}


@pytest.mark.parametrize(
    "now, message",
    [
        (
            content(w="2" * 64, c="1" * 64),
            r"model=/models/a: w has changed .SHA-256 was 111111111111, is 22222222",
        ),
        (
            content(w="1" * 64),
            "model=/models/a: c is gone since the run in out=.*run was begun; put back",
        ),
        (content(w="1" * 64, c="1" * 64, d="1"), "model=/models/a: d was not there since"),
        (content(w="2", c="2", d="2"), "w has changed .*, and 2 more since"),
        ({}, "model is not given now, and was since"),
        ({**content(w="1" * 64, c="1" * 64), "rows": fingerprint.Content("r", {})}, "rows=r is given now, and was not"),
    ],
)
def test_a_run_is_refused_from_other_files(tmp_path, now, message):
    config = Reads(str(tmp_path / "run"), "/models/a")
    folder.open_run(config, device="cpu", contents=content(w="1" * 64, c="1" * 64))
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(BadInput, match=message):
        folder.open_run(config, device="cpu", contents=now)
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_run_goes_on_where_its_files_lie_elsewhere(tmp_path):
    read = content(w="1")
    folder.open_run(Reads(str(tmp_path / "run"), "/models/a"), device="cpu", contents=read)
    folder.open_run(Reads(str(tmp_path / "run"), "/moved/a"), device="cpu", contents=read)
    assert "/moved/a" in (tmp_path / "run" / "config.yaml").read_text()
    assert "model" not in folder.identity(Reads("x", "y")) and folder.identity(Reads("x"))["rate"] == 1
    with pytest.raises(BadInput, match="rate was 1, is 2"):
        folder.open_run(Reads(str(tmp_path / "run"), "/models/a", 2), device="cpu", contents=read)


def test_a_file_of_one_key_is_known_by_what_it_holds_and_not_by_its_name(tmp_path):
    for name, text in (("a.jinja", "one"), ("b.jinja", "one"), ("c.jinja", "two")):
        (tmp_path / name).write_text(text)
    a, b, c = (contents.of_file(str(tmp_path / name)) for name in ("a.jinja", "b.jinja", "c.jinja"))
    assert fingerprint.difference("chat_template", a.files, b) is None and a.digest == b.digest != c.digest
    assert "chat_template=" in str(fingerprint.difference("chat_template", a.files, c))
