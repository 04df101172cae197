"""Every writer has what it wrote on disk before it says so: the order of write, sync and rename."""

import dataclasses
import json
import threading
import types

import jax.numpy as jnp
import pytest
from disk_cases import Disk

from s1jax.checkpoint import folder, saved, store
from s1jax.records import JsonlWriter, write_json, write_jsonl
from s1jax.train import loop
from s1jax.train.log import Log, MetricsFile


@pytest.fixture
def disk(monkeypatch) -> Disk:
    return Disk(monkeypatch)


def test_a_line_is_on_disk_when_write_returns(tmp_path, disk):
    path = tmp_path / "deep" / "deeper" / "rows.jsonl"
    with JsonlWriter(path) as writer:
        assert disk.take() == []
        for row in ({"id": 1}, {"id": "ü"}):
            writer.write(row)
            assert disk.take() == [("sync", "rows.jsonl", path.stat().st_size)]
            assert json.loads(path.read_text().splitlines()[-1]) == row


@pytest.mark.parametrize("write", [write_json, write_jsonl])
def test_a_file_has_its_name_when_it_is_whole(tmp_path, disk, write):
    path = tmp_path / "deep" / "deeper" / "data"
    for _ in range(2):  # and when it takes the place of another
        write(path, [{"a": 1}] * 3)
        events = [event for event in disk.take() if event[0] != "remove"]
        assert [event[0] for event in events] == ["sync", "rename"] and events[1][2] == "data"
        assert events[0][1:] == (events[1][1], path.stat().st_size), "all of it, under its other name"
    assert [entry.name for entry in path.parent.iterdir()] == ["data"]


def test_an_export_takes_its_name_when_all_of_it_is_on_disk(tmp_path, disk):
    target = tmp_path / "hf"
    for text in ("first", "second"):
        partial = folder.open_partial(target, replace=True)
        (partial / "deep").mkdir()
        for name in ("config.json", "deep/part"):
            (partial / name).write_text(text)
        disk.take()
        folder.close_partial(partial, target)
        events = disk.take()
        names = [event[0] for event in events]
        first_rename = names.index("rename")
        assert {event[1:] for event in events[:first_rename]} == {("config.json", len(text)), ("part", len(text))}
        moves = [event for event in events[first_rename:]]
        if text == "first":
            assert moves == [("rename", ".hf.partial", "hf")]
        else:
            assert moves[:2] == [("rename", "hf", ".hf.old"), ("rename", ".hf.partial", "hf")]
            assert moves[2] == ("remove", ".hf.old"), "the old one goes when the new one has its name"
        assert (target / "deep" / "part").read_text() == text
    assert [entry.name for entry in tmp_path.iterdir()] == ["hf"]


def test_what_an_earlier_crash_left_is_out_of_the_way(tmp_path):
    target = tmp_path / "hf"
    for name in ("hf", ".hf.old", ".hf.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    partial = folder.open_partial(target, replace=True)
    assert list(partial.iterdir()) == []
    (partial / "config.json").write_text("new")
    folder.close_partial(partial, target)
    assert (target / "config.json").read_text() == "new" and [entry.name for entry in tmp_path.iterdir()] == ["hf"]


def test_metrics_are_on_disk_before_the_checkpoint_that_knows_of_them(tmp_path, disk):
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    disk.take()
    order = []

    def save(step, state, loss):
        order.append(("save", step, state.base, loss))
        assert disk.take() == [("sync", "metrics.jsonl", (tmp_path / "metrics.jsonl").stat().st_size)]

    @dataclasses.dataclass
    class State:
        base: str | None

    log = Log(file, [], None)
    log.write({"step": 1, "loss": 2.0}, seconds_left=None)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n', "it outlives the process at once"
    pace = loop.Pace(None, None, None)
    parts = types.SimpleNamespace(
        log=log, store=types.SimpleNamespace(save=save), validation=[], pace=pace, out=tmp_path
    )
    loop._validate_and_save(parts, State("base"), 1, is_save=True)  # type: ignore[arg-type]
    assert order == [("save", 1, None, None)], "the base of adapters is not saved"
    loop._validate_and_save(parts, State("base"), 2, is_save=False)  # type: ignore[arg-type]
    assert len(order) == 1
    log.write({"step": 2}, seconds_left=None)
    log.close()
    assert disk.take() == [("sync", "metrics.jsonl", (tmp_path / "metrics.jsonl").stat().st_size)]


def test_a_manifest_is_written_last_and_then_the_old_ones_go(tmp_path, disk, monkeypatch):
    hashed = []
    digest = store.hash_file
    monkeypatch.setattr(store, "hash_file", lambda path: hashed.append(len(disk.events)) or digest(path))
    writer = store.Store(tmp_path, keep=1)
    for step in (1, 2):
        writer.save(step, {"x": jnp.arange(8)})
        writer.wait()
    writer.close()
    events = [event[:2] if event[0] == "sync" else event for event in disk.events]
    manifest = [i for i, event in enumerate(events) if event[0] == "rename" and event[2] == "manifest.json"]
    assert len(manifest) == 2 and events[manifest[1] + 1] == ("remove", "00000001")
    assert events[manifest[0] - 1][0] == events[manifest[1] - 1][0] == "sync"
    assert max(hashed) < manifest[1], "every file is read before the manifest has its name"


def test_one_save_is_under_way_at_a_time(tmp_path, monkeypatch):
    """The second save begins when the first has its manifest, however late that is."""
    gate, begun, saves = threading.Event(), threading.Event(), []
    finish, save_async = store.Store._finish, store.ocp.save_async

    def slowly(self, *arguments):
        begun.set()
        assert gate.wait(60)
        finish(self, *arguments)

    def noted(path, state):
        saves.append([checkpoint.step for checkpoint in saved.saved(tmp_path)])
        return save_async(path, state)

    monkeypatch.setattr(store.Store, "_finish", slowly)
    monkeypatch.setattr(store.ocp, "save_async", noted)
    writer = store.Store(tmp_path, keep=5)
    writer.save(1, {"x": jnp.ones(3)})
    assert begun.wait(60)
    second = threading.Thread(target=writer.save, args=(2, {"x": jnp.ones(3)}))
    second.start()
    second.join(0.2)
    assert saves == [[]], "the second waits"
    gate.set()
    second.join(60)
    writer.close()
    assert saves == [[], [1]] and [checkpoint.step for checkpoint in saved.saved(tmp_path)] == [1, 2]
