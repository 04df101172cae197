"""YAML and overrides into frozen dataclasses."""

import dataclasses
from typing import Any, Literal

import pytest

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
    table: dict[str, int] = dataclasses.field(default_factory=dict)
    anything: Any = None


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


def test_values_of_every_kind():
    overrides = [
        "out=x",
        "table={a: 1}",
        "anything=[1, {b: 2}]",
        "pair=[2, b]",
        "flag=true",
        "inner.rate=2",
        "slots=auto",
    ]
    loaded = config.load(Outer, None, [*overrides, "optional=null", "inner.budget=null", "sizes=[]", "kind=budget"])
    assert loaded == Outer(
        *("x", Inner(2.0), None, (), (2, "b"), "budget", "auto", True), table={"a": 1}, anything=[1, {"b": 2}]
    )
    assert type(loaded.inner.rate) is float and config.load(Outer, None, ["out=a=b"]).out == "a=b"
    assert config.load(Outer, None, ["out=x", "note="]).note == "" and config.load(Outer, None, ["out=x", "anything="])
    assert config.load(Outer, None, ["out=x", "inner.rate=-1.5E+3"]).inner.rate == -1500.0
    assert config.load(Outer, None, ["out=x", "inner.rate=.5e1"]).inner.rate == 5.0
    assert config.load(Outer, None, ["out=x", "note=~"]).note is None


def test_the_later_of_two_overrides_holds_and_the_file_comes_first(tmp_path):
    (tmp_path / "r.yaml").write_text("out: file\nlog_every: 3\n")
    loaded = config.load(Outer, tmp_path / "r.yaml", ["out=one", "out=two"])
    assert (loaded.out, loaded.log_every) == ("two", 3)


def test_fields_that_may_change_are_marked():
    marked = {field.name for field in dataclasses.fields(Outer) if field.metadata.get("free")}
    assert marked == {"log_every"}

    @dataclasses.dataclass(frozen=True)
    class Made:
        needed: int = free()
        items: list = free(factory=lambda: [1])

    assert Made(needed=2).items == [1] and Made(needed=2).items is not Made(needed=2).items
    assert all(field.metadata["free"] for field in dataclasses.fields(Made))
    with pytest.raises(BadInput, match="key 'needed' is missing"):
        config.from_dict(Made, {})


def test_lists_of_texts_are_yaml():
    loaded = config.load(Outer, None, ["out=5", "words=[a, b]", "text_or_list=[c, d]"])
    assert (loaded.out, loaded.words, loaded.text_or_list) == ("5", ("a", "b"), ("c", "d"))


@pytest.mark.parametrize(
    "override, says",
    [
        ("inner.rate=1" + "0" * 400, "(int); it must be a number"),
        ("kindd=free", "unknown key 'kindd'; the nearest known key is 'kind'"),
        ("inner.rat=1", "unknown key 'inner.rat'; the nearest known key is 'inner.rate'"),
        ("optional.budgett=1", "unknown key 'optional.budgett'; the nearest known key is 'optional.budget'"),
        ("kind=fre", "key 'kind' is 'fre'; it must be one of 'free', 'budget'"),
        ("inner.budget=true", "key 'inner.budget' is True (bool); it must be a whole number"),
        ("inner.rate=abc", "key 'inner.rate' is 'abc' (str); it must be a number"),
        ("sizes=[1,a]", "key 'sizes[1]' is 'a' (str); it must be a whole number"),
        ("pair=[1]", "key 'pair' is [1] (list); it must be a list of 2: a whole number, a text"),
        ("slots=many", "key 'slots' is 'many' (str); it must be a whole number or auto"),
        ("flag=1", "key 'flag' is 1 (int); it must be true or false"),
        ("optional.rate=null", "key 'optional.rate' is None (NoneType); it must be"),
        ("slots=null", "key 'slots' is None (NoneType); it must be"),
        ("text_or_list=null", "key 'text_or_list' is None (NoneType); it must be"),
        ("inner=null", "key 'inner' is None (NoneType); it must be"),
        ("inner=3", "key 'inner' is 3 (int); it must be"),
        ("optional=3", "key 'optional' is 3 (int); it must be"),
        ("flag=null", "key 'flag' is None (NoneType); it must be"),
        ("inner.budget=1.5", "key 'inner.budget' is 1.5 (float); it must be"),
        ("inner.rate=true", "key 'inner.rate' is True (bool); it must be"),
        ("kind=1", "key 'kind' is 1; it must be"),
        ("sizes=3", "key 'sizes' is 3 (int); it must be"),
        ("pair=[1, b, c]", "key 'pair' is [1, 'b', 'c'] (list); it must be"),
        ("pair=[a, b]", "key 'pair[0]' is 'a' (str); it must be"),
        ("table=3", "key 'table' is 3 (int); it must be"),
        ("=3", "override '=3' is not of the form key=value"),
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


@pytest.mark.parametrize("text", ["1e5", "1e+5", "2.5E-3", ".5e3", "-1e-5", "+3.e2"])
def test_every_exponent_form_is_a_number(text):
    assert config.load(Outer, None, ["out=x", f"inner.rate={text}"]).inner.rate == float(text)


def test_numbers_in_exponent_form_are_numbers(tmp_path):
    (tmp_path / "r.yaml").write_text("out: x\ninner: {rate: 1e-5}\n")
    assert config.load(Outer, tmp_path / "r.yaml").inner.rate == 1e-5


@dataclasses.dataclass(frozen=True)
class Holder:
    inner: Inner = Inner(rate=0.5)
    other: Inner | None = None


def test_a_key_changes_itself_alone():
    """Beside it stands what the holder's default says, where it has one, and not the default of the class below it."""
    changed = config.load(Holder, None, ["inner.budget=3", "other.budget=4"])
    assert changed.inner == Inner(rate=0.5, budget=3) and changed.other == Inner(budget=4)


@pytest.mark.parametrize(
    "hint, words",
    [
        (int | Literal["auto"], "a whole number or auto"),
        (bool, "true or false"),
        (str | tuple[str, ...], "a text or a list of texts"),
        (tuple[int, int] | None, "a list of 2 whole numbers or null"),
        (tuple[int, str], "a list of 2: a whole number, a text"),
        (tuple[tuple[int, int], ...], "a list of entries: a list of 2 whole numbers"),
        (Literal["float32", "bfloat16"] | None, "float32 or bfloat16 or null"),
        (dict[str, float], "names and values"),
        (Inner | None, "keys of its own or null"),
    ],
)
def test_types_in_words(hint, words):
    assert config.in_words(hint) == words


@dataclasses.dataclass(frozen=True)
class Plain:
    kind: str = "plain"
    note: str | None = None


@dataclasses.dataclass(frozen=True)
class Limited:
    kind: str = "limited"
    limit: int = 5


SHAPES = {"plain": Plain, "limited": Limited}


@dataclasses.dataclass(frozen=True)
class Chosen:
    shape: Plain | Limited = config.choice(Limited(), lambda: SHAPES)


def test_the_kind_picks_the_class(monkeypatch):
    assert config.load(Chosen).shape == Limited()
    assert config.load(Chosen, overrides=["shape.limit=7"]).shape == Limited(limit=7)
    assert config.load(Chosen, overrides=["shape.kind=plain", "shape.note=a # b"]).shape == Plain(note="a # b")
    loaded = config.load(Chosen, overrides=["shape.kind=plain"])
    assert config.from_dict(Chosen, config.to_dict(loaded)) == loaded

    @dataclasses.dataclass(frozen=True)
    class Late:
        kind: str = "late"
        speed: float = 1.0

    monkeypatch.setitem(SHAPES, "late", Late)
    assert config.load(Chosen, overrides=["shape.kind=late", "shape.speed=2"]).shape == Late(speed=2.0)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["shape.kind=round"], "key 'shape.kind' is 'round'; it must be one of 'plain', 'limited'"),
        (["shape.kind=[1]"], "key 'shape.kind' is .*1.*must be one of"),
        (["shape.kind=plain", "shape.limit=3"], "shape.limit is for shape.kind=limited, and shape.kind is plain"),
        (["shape.limti=3"], "unknown key 'shape.limti'; the nearest known key is 'shape.limit'"),
        (["shape=limited"], "key 'shape' is 'limited' .str.; it must be keys"),
    ],
)
def test_what_the_kind_does_not_have_is_refused(overrides, message):
    with pytest.raises(BadInput, match=message):
        config.load(Chosen, overrides=overrides)
