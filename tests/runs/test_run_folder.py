"""The folder of a run remembers what it was made from."""

import dataclasses
import json

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
    assert receipt["device"] == "cpu" and receipt["format"] == "s1jax.run/1" and "numpy" in receipt["packages"]
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
