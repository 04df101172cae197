"""An out folder in an object store, where the store is fsspec's own in memory: what is there is what was written."""

import contextlib
import dataclasses
import json
import os
import shutil

import fsspec
import pytest

from s1jax.checkpoint import convert
from s1jax.config import BadInput
from s1jax.eval import grade
from s1jax.runs import folder, lock, places
from s1jax.runs.mirror import Mirror, mirrored


@dataclasses.dataclass(frozen=True)
class Config:
    out: str
    rate: int = 1


class RemotePath:
    """A path of the store."""

    def __init__(self, text):
        self.text = text

    def __truediv__(self, name):
        return RemotePath(f"{self.text}/{name}")

    def __fspath__(self):
        return self.text

    __str__ = __fspath__

    def read_bytes(self):
        return places.read_whole(self)

    @property
    def name(self):
        return self.text.rpartition("/")[2]

    def is_dir(self):
        return False

    def is_file(self):
        return self.text.rpartition("/")[2] in places.names(RemotePath(self.text.rpartition("/")[0]))


@pytest.fixture
def remote(monkeypatch):
    """A folder of an empty store."""
    system = fsspec.filesystem("memory", skip_instance_cache=True)
    system.store, system.pseudo_dirs = {}, [""]
    monkeypatch.setattr(places, "_system", lambda path: (system, "/" + str(path).removeprefix("gs://")))
    for name in ("pipe_file", "put_file"):
        write = getattr(system, name)
        add = {"pipe_file": lambda to, data, w=write: w(to.removeprefix("gs:/"), data)}
        add |= {"put_file": lambda path, to, w=write: w(path, to.removeprefix("gs:/"))}
        monkeypatch.setattr(system, name, add[name])
    monkeypatch.setattr(places, "_remote", RemotePath)
    return RemotePath("gs://bucket/run")


def rows(remote, name):
    return [json.loads(line)["n"] for line in places.read_whole(remote / name).splitlines()]


def append(path, *numbers):
    with path.open("a") as file:
        file.write("".join(json.dumps({"n": n}) + "\n" for n in numbers))


@pytest.mark.parametrize("first", [(), (1,)])
def test_rows_that_are_appended_while_a_file_is_first_written_are_there_once(remote, tmp_path, monkeypatch, first):
    """The writer of rows does not wait for the mirror: a file may grow between the look at it and its upload."""
    path = tmp_path / "metrics.jsonl"
    append(path, *first)
    mirror, looked = Mirror(remote, tmp_path), Mirror._write

    def late(self, name, state):
        if path.stat().st_size == state[1]:
            append(path, 2)
        looked(self, name, state)

    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "_write", late)
        mirror.push()
    append(path, 3)
    mirror.push()
    append(path, 4)
    mirror.push()
    assert rows(remote, "metrics.jsonl") == [*first, 2, 3, 4]


def test_a_run_in_a_store_goes_on_and_another_is_refused(tmp_path):
    """Its receipt is read where the folder is mirrored."""
    config = Config("gs://bucket/run")
    for _ in range(2):
        folder.open_run(config, device="cpu", folder=tmp_path)
    with pytest.raises(BadInput, match=r"out=gs://bucket/run belongs to another run: rate was 1, is 2"):
        folder.open_run(dataclasses.replace(config, rate=2), device="cpu", folder=tmp_path)


def test_a_lease_is_signed_again_after_an_error_of_the_store(remote, monkeypatch):
    """A client's errors are of its own kinds; without another sign a peer would take the lock over."""

    class ClientError(Exception):
        pass

    signs, write = [], places.write_bytes

    def failing(path, data):
        signs.append(data)
        if len(signs) == 2:
            raise ClientError("503")
        write(path, data)

    monkeypatch.setattr(places, "write_bytes", failing)
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.06)
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.0)
    with lock._leased(remote):
        for _ in range(200):
            if len(signs) > 3:
                break
            lock.time.sleep(0.05)
    assert len(signs) > 3


def test_a_verb_returns_the_folder_in_the_store_and_not_the_copy_that_is_gone(remote, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(folder, "locked", lambda out: contextlib.nullcontext())
    completions = tmp_path / "completions.jsonl"
    completions.write_text(json.dumps({"id": "a", "text": "\\boxed{1}", "gold": "1"}) + "\n")
    for _ in range(2):
        out = grade.run(grade.GradeRun(completions=str(completions), out=str(remote)))
        assert str(out) == str(remote) and json.loads(places.read_whole(out / "report.json"))["rows"] == 1
        assert f"wrote {remote}/samples.jsonl" in capsys.readouterr().err


def test_what_could_not_be_written_at_the_end_is_kept(remote, monkeypatch, capsys):
    def fail(*_):
        raise ConnectionError("503")

    monkeypatch.setattr(places, "upload", fail)
    with pytest.raises(ConnectionError), mirrored(remote) as local:
        (local / "report.json").write_text("all of it")
    assert (local / "report.json").read_text() == "all of it"
    assert f"gs://bucket/run lacks what was written last; all of it is kept in {local}" in capsys.readouterr().err
    shutil.rmtree(local)


def test_a_conversion_in_a_store_is_complete_where_its_copy_is(remote, tmp_path, monkeypatch):
    """Files too large to be hashed are known by their size: the copy's times are those of the download."""
    monkeypatch.setattr(convert, "SMALL_BYTES", 10)
    config = convert.ConvertRun(source="s", target=str(remote))
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "here" / "model.safetensors").write_bytes(b"x" * 100)
    os.utime(tmp_path / "here" / "model.safetensors", (1, 1))
    Mirror(remote, tmp_path / "here").push()
    Mirror(remote, tmp_path / "there").pull()
    written = convert._written(config, tmp_path / "here")
    assert written == convert._written(config, tmp_path / "there") == {"model.safetensors": "100 bytes"}
    local = convert.ConvertRun(source="s", target=str(tmp_path / "t"))
    assert convert._written(local, tmp_path / "here") != convert._written(local, tmp_path / "there")


def test_a_fetch_that_fails_leaves_nothing(remote, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    places.write_bytes(remote / "a.jsonl", b"{}\n")

    def fail(path):
        raise ConnectionError("503")

    with monkeypatch.context() as patch:
        patch.setattr(places, "read_whole", fail)
        with pytest.raises(ConnectionError):
            places.fetched("gs://bucket/run/a.jsonl")
    assert not list((tmp_path / "cache" / "s1jax" / "fetched").iterdir())
    assert places.fetched("gs://bucket/run/a.jsonl").read_bytes() == b"{}\n"
    assert len(list((tmp_path / "cache" / "s1jax" / "fetched").iterdir())) == 1
