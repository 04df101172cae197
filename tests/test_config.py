"""YAML and overrides into frozen dataclasses, and the run folder."""

import dataclasses
import json
from typing import Literal

import pytest
import yaml

from s1jax import config
from s1jax.config import BadInput, free


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 1e-5
    budget: int | None = None


@dataclasses.dataclass(frozen=True)
class Outer:
    out: str
    inner: Inner = Inner()
    optional: Inner | None = None
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[int, str] = (1, "a")
    kind: Literal["free", "budget"] = "free"
    slots: int | Literal["auto"] = "auto"
    flag: bool = False
    note: str | None = None
    words: tuple[str, ...] = ()
    text_or_list: str | tuple[str, ...] = ""
    log_every: int = free(10)


def test_yaml_and_overrides(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("env: {XLA_FLAGS: --a}\nout: here\ninner: {rate: 1e-6}\nsizes: [3]\n")
    loaded = config.load(Outer, path, ["inner.budget=512", "kind=budget", "slots=4", "optional.rate=2"])
    assert loaded == Outer(
        out="here", inner=Inner(1e-6, 512), sizes=(3,), kind="budget", slots=4, optional=Inner(rate=2.0)
    )
    assert config.from_dict(Outer, config.to_dict(loaded)) == loaded


@pytest.mark.parametrize(
    "value, text",
    [
        ("Problem #3: what is 2: 3?", "Problem #3: what is 2: 3?"),
        ("[1, 2] is what?", "[1, 2] is what?"),
        ("5", "5"),
        ("yes", "yes"),
        ("", ""),
        ("'null'", "null"),
        ('"a # b"', "a # b"),
        ("null", None),
    ],
)
def test_a_text_on_the_command_line_stands_as_it_is(value, text):
    assert config.load(Outer, None, ["out=x", f"note={value}"]).note == text


def test_lists_of_texts_are_yaml():
    loaded = config.load(Outer, None, ["out=5", "words=[a, b]", "text_or_list=[c, d]"])
    assert (loaded.out, loaded.words, loaded.text_or_list) == ("5", ("a", "b"), ("c", "d"))


@pytest.mark.parametrize(
    "override, says",
    [
        ("inner.rate=1" + "0" * 400, "(int); it must be float"),
        ("kindd=free", "unknown key 'kindd'; the nearest known key is 'kind'"),
        ("inner.rat=1", "unknown key 'inner.rat'; the nearest known key is 'inner.rate'"),
        ("optional.budgett=1", "unknown key 'optional.budgett'; the nearest known key is 'optional.budget'"),
        ("kind=fre", "key 'kind' is 'fre'; it must be one of 'free', 'budget'"),
        ("inner.budget=true", "key 'inner.budget' is True (bool); it must be int"),
        ("inner.rate=abc", "key 'inner.rate' is 'abc' (str); it must be float"),
        ("sizes=[1,a]", "key 'sizes[1]' is 'a' (str); it must be int"),
        ("pair=[1]", "key 'pair' is [1] (list); it must be tuple[int, str]"),
        ("slots=many", "key 'slots' is 'many' (str); it must be int or 'auto'"),
        ("flag=1", "key 'flag' is 1 (int); it must be bool"),
        ("seed", "override 'seed' is not of the form key=value"),
        ("inner.rate.x=1", "goes below 'rate', which is already set to 0.1"),
        ("sizes=[1", "is not YAML"),
    ],
)
def test_bad_keys_and_values_are_named(override, says):
    with pytest.raises(BadInput) as error:
        config.load(Outer, None, ["out=x", "inner.rate=0.1", override])
    assert says in str(error.value) and "\n" not in str(error.value)


def test_missing_key_and_bad_files(tmp_path):
    with pytest.raises(BadInput, match="key 'out' is missing"):
        config.load(Outer)
    with pytest.raises(BadInput, match="does not exist"):
        config.load(Outer, tmp_path / "none.yaml")
    for content, says in (("a: [1", "is not YAML"), ("- 1", "holds a list, not key: value pairs")):
        (tmp_path / "bad.yaml").write_text(content)
        with pytest.raises(BadInput, match=says):
            config.load(Outer, tmp_path / "bad.yaml")
    (tmp_path / "bad.yaml").write_bytes(b"out: caf\xe9")
    with pytest.raises(BadInput, match="is not YAML"):
        config.load(Outer, tmp_path / "bad.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert config.load(Outer, tmp_path / "empty.yaml", ["out=x"]).out == "x"


def test_numbers_in_exponent_form_are_numbers(tmp_path):
    (tmp_path / "r.yaml").write_text("out: x\ninner: {rate: 1e-5}\n")
    assert config.load(Outer, tmp_path / "r.yaml").inner.rate == 1e-5


def test_describe_lists_every_key():
    lines = config.describe(Outer)
    assert "out: str (required)" in lines and "inner.rate: float = 1e-05" in lines and "log_every: int = 10" in lines


def test_run_folder_remembers_its_identity(tmp_path):
    first = Outer(out=str(tmp_path / "run"))
    out = config.open_run(first, device="cpu")
    assert yaml.safe_load((out / "config.yaml").read_text())["inner"]["rate"] == 1e-5
    receipt = json.loads((out / "run.json").read_text())
    assert receipt["device"] == "cpu" and receipt["format"] == "s1jax.run/1" and "numpy" in receipt["packages"]
    config.open_run(dataclasses.replace(first, log_every=99), device="cpu")
    (out / "metrics.jsonl").write_text("kept\n")
    with pytest.raises(BadInput, match=r"inner.rate was 1e-05, is 0.1"):
        config.open_run(dataclasses.replace(first, inner=Inner(0.1)), device="cpu")
    assert (out / "metrics.jsonl").read_text() == "kept\n"


def test_a_run_killed_while_its_folder_was_begun_goes_on(tmp_path, monkeypatch):
    config_of_run = Outer(out=str(tmp_path / "run"))
    for killed in ("replace", "safe_dump"):  # within the receipt; behind it

        def die(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            if killed == "replace":
                patch.setattr(config.os, "replace", die)
            else:
                patch.setattr(config.yaml, "safe_dump", die)
            with pytest.raises(KeyboardInterrupt):
                config.open_run(config_of_run, device="cpu")
    assert (config.open_run(config_of_run, device="cpu") / "config.yaml").is_file()


def test_run_folder_of_something_else(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="is a file"):
        config.open_run(Outer(out=str(tmp_path / "file")), device="cpu")
    with pytest.raises(BadInput, match="no run.json"):
        config.open_run(Outer(out=str(tmp_path)), device="cpu")
    config.open_run(Outer(out=str(tmp_path / "a")), device="cpu")

    @dataclasses.dataclass(frozen=True)
    class Other:
        out: str

    with pytest.raises(BadInput, match="belongs to a Outer, not a Other"):
        config.open_run(Other(out=str(tmp_path / "a")), device="cpu")
    for content in ("{", "[]"):
        (tmp_path / "a" / "run.json").write_text(content)
        with pytest.raises(BadInput, match="cannot be read"):
            config.open_run(Outer(out=str(tmp_path / "a")), device="cpu")
