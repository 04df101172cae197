"""The folder of a run remembers what it was made from."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest
import yaml

from s1jax.config import BadInput, free
from s1jax.runs import folder


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 1e-5


@dataclasses.dataclass(frozen=True)
class Outer:
    out: str
    inner: Inner = Inner()
    log_every: int = free(10)


def test_run_folder_remembers_its_identity(tmp_path):
    first = Outer(out=str(tmp_path / "run"))
    out = folder.open_run(first, device="cpu")
    assert yaml.safe_load((out / "config.yaml").read_text())["inner"]["rate"] == 1e-5
    receipt = json.loads((out / "run.json").read_text())
    assert receipt["device"] == "cpu" and receipt["format"] == "s1jax.run/2" and "numpy" in receipt["packages"]
    folder.open_run(dataclasses.replace(first, log_every=99), device="cpu")
    (out / "metrics.jsonl").write_text("kept\n")
    with pytest.raises(BadInput, match=r"inner.rate was 1e-05, is 0.1"):
        folder.open_run(dataclasses.replace(first, inner=Inner(0.1)), device="cpu")
    assert (out / "metrics.jsonl").read_text() == "kept\n"


def test_a_run_killed_while_its_folder_was_begun_goes_on(tmp_path, monkeypatch):
    config_of_run = Outer(out=str(tmp_path / "run"))
    for killed in ("replace", "safe_dump"):  # within the receipt; behind it

        def die(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            if killed == "replace":
                patch.setattr(folder.records.os, "replace", die)
            else:
                patch.setattr(folder.yaml, "safe_dump", die)
            with pytest.raises(KeyboardInterrupt):
                folder.open_run(config_of_run, device="cpu")
    assert (folder.open_run(config_of_run, device="cpu") / "config.yaml").is_file()


def test_run_folder_of_something_else(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="is a file"):
        folder.open_run(Outer(out=str(tmp_path / "file")), device="cpu")
    with pytest.raises(BadInput, match="no run.json"):
        folder.open_run(Outer(out=str(tmp_path)), device="cpu")
    folder.open_run(Outer(out=str(tmp_path / "a")), device="cpu")

    @dataclasses.dataclass(frozen=True)
    class Other:
        out: str

    with pytest.raises(BadInput, match="belongs to a Outer, not a Other"):
        folder.open_run(Other(out=str(tmp_path / "a")), device="cpu")
    for content in ("{", "[]"):
        (tmp_path / "a" / "run.json").write_text(content)
        with pytest.raises(BadInput, match="cannot be read"):
            folder.open_run(Outer(out=str(tmp_path / "a")), device="cpu")


@dataclasses.dataclass(frozen=True)
class Part:
    out: str = "inner"
    words: tuple[str, ...] = ("a",)
    loose: int = free(1)


@dataclasses.dataclass(frozen=True)
class Whole:
    out: str
    part: Part | None = None
    parts: tuple[Part, ...] = ()
    a: int = 0
    b: int = 0
    c: int = 0
    d: int = 0
    e: int = 0
    seed: int = 7


def test_what_a_run_is_known_by():
    """Every key but the free ones and its own folder; an `out` of a part is a key as any other."""
    known = folder.identity(Whole("here", Part(), (Part(loose=2),)))
    assert known == {
        **{"part.out": "inner", "part.words": ["a"], "parts": [{"out": "inner", "words": ["a"], "loose": 2}]},
        **{"a": 0, "b": 0, "c": 0, "d": 0, "e": 0, "seed": 7},
    }
    assert "part" in folder.identity(Whole("here")) and "out" not in folder.identity(Whole("here"))


def test_keys_that_appear_or_go_are_differences(tmp_path):
    plain, nested = Whole(str(tmp_path / "a")), Whole(str(tmp_path / "a"), Part())
    folder.open_run(plain, device="cpu")
    with pytest.raises(BadInput, match="part.out was None, is 'inner'; part.words was None, is"):
        folder.open_run(nested, device="cpu")
    receipt = tmp_path / "a" / "run.json"
    record = json.loads(receipt.read_text())
    receipt.write_text(json.dumps({**record, "identity": {**record["identity"], "old": 3}}))
    with pytest.raises(BadInput, match="belongs to another run: old was 3, is None; set them back"):
        folder.open_run(plain, device="cpu")


def test_the_first_four_differences_are_named(tmp_path):
    first = Whole(str(tmp_path / "a"))
    folder.open_run(first, device="cpu")
    with pytest.raises(BadInput) as error:
        folder.open_run(dataclasses.replace(first, a=1, b=1, c=1, d=1), device="cpu")
    assert "d was 0, is 1; set them back or give another out folder" in str(error.value)
    with pytest.raises(BadInput) as error:
        folder.open_run(dataclasses.replace(first, a=1, b=1, c=1, d=1, e=1), device="cpu")
    assert "d was 0, is 1 (and 1 more); set them back" in str(error.value) and "e was" not in str(error.value)


def test_the_receipt_comes_first_and_says_what_ran(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--some")
    monkeypatch.setenv("JAX_THING", "1")
    monkeypatch.setenv("OTHER_THING", "2")
    out = folder.open_run(Whole(str(tmp_path / "a")), device="two of them")
    record = json.loads((out / "run.json").read_text())
    assert record["environment"]["XLA_FLAGS"] == "--some" and record["environment"]["JAX_THING"] == "1"
    assert not any(name.startswith("OTHER") for name in record["environment"])
    assert (record["kind"], record["seed"], record["device"]) == ("Whole", 7, "two of them")
    assert record["python"].count(".") == 2 and record["packages"]["jax"] and record["identity"]["seed"] == 7
    assert set(record["packages"]) <= set(folder.PACKAGES)
    text = (out / "config.yaml").read_text()
    assert list(yaml.safe_load(text)) == [field.name for field in dataclasses.fields(Whole)], (
        "in the order of the class"
    )
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / ".run.json.123").write_text("left by a killed start")
    folder.open_run(Whole(str(tmp_path / "b")), device="cpu")
    (tmp_path / "c").mkdir()
    for name in (".run.json.123", "mine"):
        (tmp_path / "c" / name).write_text("x")
    with pytest.raises(BadInput, match="holds files but no run.json"):
        folder.open_run(Whole(str(tmp_path / "c")), device="cpu")


def test_who_is_refused_by_the_lock_has_changed_nothing(tmp_path):
    """Another process is in the folder; the same run, started again with another free key, rewrites no file there."""
    first = Outer(out=str(tmp_path / "run"))
    folder.open_run(first, device="cpu")
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "run").iterdir()}
    code = (
        "import sys\nfrom s1jax.runs.lock import locked\nwith locked(sys.argv[1]):\n    print(flush=True)\n    input()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "\n"
        with pytest.raises(BadInput, match=f"is in use by process {holder.pid}"):
            with folder.entered(dataclasses.replace(first, log_every=99), device="cpu"):
                pytest.fail("two are in it")
        found = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "run").iterdir()}
        assert {name: found[name] for name in before} == before
        holder.communicate("\n")


def test_every_verb_enters_its_folder_by_the_lock():
    """`open_run` alone stands in no verb but convert, whose folder has no name until it is whole."""
    from s1jax.__main__ import VERBS

    doors = ("entered(", "opened(", "run_folder(", "locked(target, beside=True)")
    for name, verb in VERBS.items():
        text = pathlib.Path(f"{verb.module.replace('.', '/')}.py").read_text(encoding="utf-8")
        assert any(door in text for door in doors), f"{name} opens its folder without a lock"
        assert "open_run(" not in text or name == "convert", name
