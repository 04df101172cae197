"""`s1jax VERB --help`: every key, what it means, and a default that is the default."""

import dataclasses
import importlib
import re
import subprocess
import sys
from typing import Literal

import pytest

from s1jax import __main__ as cli
from s1jax import config, help
from s1jax.benchmarks import BENCHMARKS
from s1jax.grading.grade import KINDS
from s1jax.models import FAMILIES
from s1jax.models.attention import BACKENDS
from s1jax.models.lora import TARGETS
from s1jax.text.tokens import PRESETS
from s1jax.train.remat import REMAT

SAMPLES = {"a text": "x", "a whole number": "3", "a number": "0.5", "a list of texts": "[x]"}


def config_class(verb: str) -> type:
    return getattr(importlib.import_module(cli.VERBS[verb].module), cli.VERBS[verb].config)


def keys_of(verb: str) -> dict[str, help.KeyLine]:
    return {key.name: key for section in help.sections(config_class(verb)) for key in section.keys}


def printed(verb: str, capsys) -> str:
    assert cli.main([verb, "--help"]) == 0
    return capsys.readouterr().out


def given(key: help.KeyLine) -> str:
    """A key with its default, or with some value of its type where it has none."""
    first = key.type.split(" or ")[0].split(" from ")[0].split(" above ")[0]
    return f"{key.name}={SAMPLES.get(first, '[{name: x}]') if key.value is None else key.value}"


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_key_is_explained_in_plain_words(verb, capsys):
    for key in keys_of(verb).values():
        assert re.search(r"\w{2}", key.sentence), f"{key.name} has no sentence in its class's Attributes"
    text = printed(verb, capsys)
    assert f"\nexample: {cli.VERBS[verb].example}\n" in text and "\n  env  " in text
    for word in ("typing.", "Union[", "Literal", "NoneType", "<class", "None", "Attributes:", "key of `", "keys of `"):
        assert word not in text, f"{word} stands in the help of {verb}"
    lines = text.splitlines()
    for name in keys_of(verb):
        assert sum(line.startswith((f"  {name}=", f"  {name} ", f"  {name}*")) for line in lines) >= 1, name


@pytest.mark.parametrize("verb", cli.VERBS)
def test_defaults_are_what_a_run_takes(verb):
    """All keys written as help shows them, and none of them: the same config. So no key is missing its default."""
    cls, sections = config_class(verb), help.sections(config_class(verb))
    parts = [part for part in sections if " with " not in part.name]
    keys = [key for part in parts for key in part.keys if not key.is_optional and "[]" not in key.name]
    required = [given(key) for key in keys if key.value is None]
    shown = [given(key) for key in keys if key.value]
    assert config.load(cls, None, [*required, *shown]) == config.load(cls, None, required)
    for part in sections:
        if " with " in part.name and not part.keys[0].is_optional:
            kind = part.name.rpartition(" with ")[2]
            own = [given(key) for key in part.keys if key.value]
            assert config.load(cls, None, [*required, kind, *own]) == config.load(cls, None, [*required, kind])
        elif part.keys[0].is_optional and "[]" not in part.name:
            # An optional section: with its required keys alone, and with all of them as they are shown.
            needed = [given(key) for key in part.keys if key.value is None] or [given(part.keys[0])]
            own = [given(key) for key in part.keys if key.value]
            beside = [item for item in required if not part.name.startswith(item.partition("=")[0] + ".")]
            around = [outer for outer in sections if part.name.startswith(f"{outer.name}.") and outer.name]
            beside += [given(key) for outer in around for key in outer.keys if key.value is None]
            assert config.load(cls, None, [*beside, *needed, *own]) == config.load(cls, None, [*beside, *needed])


@pytest.mark.parametrize(
    "verb, name, registry",
    [
        ("curate", "sources[].kind", importlib.import_module("curation.sources").LOADERS),
        ("curate", "stages", importlib.import_module("curation").STAGES),
        ("train", "model.init.family", FAMILIES),
        ("train", "attention", BACKENDS),
        ("train", "remat", REMAT),
        ("train", "lora.targets", TARGETS),
        ("train", "data.preset", PRESETS),
        ("eval", "benchmark", BENCHMARKS),
        ("eval", "grader", KINDS),
        ("generate", "answers", KINDS),
    ],
)
def test_open_lists_are_named(verb, name, registry):
    assert f"of {', '.join(registry)}" in keys_of(verb)[name].sentence


def test_what_must_be_given_and_what_is_off(capsys):
    text = printed("train", capsys)
    required = re.findall(r"^  (\S+)=\.\.\..* required\)$", text, re.MULTILINE)
    assert required == ["model", "data.rows"]
    assert "\nmodel.init: where model is not a text; " in text and "  model.init.D=...  " in text
    assert "\nlora: off by default, on with any of these keys; " in text and "\n  lora=null  " in text
    assert "\n  mesh.fsdp=-1*  " in text and "\n  seed=42  " in text
    assert re.search(r"^  mesh\*  .*`search`.* \(keys of its own or search\)$", printed("plan", capsys), re.MULTILINE)
    assert "\n  mesh.fsdp=1*  " in printed("eval", capsys), "the default of the run, not that of the class of its mesh"


@dataclasses.dataclass(frozen=True)
class Short:
    """Stops early.

    Attributes:
      kind: this.
      limit: tokens at
        most.
      header: put first; None for none.
    """

    kind: str = "short"
    limit: int = 5
    header: str | None = None


@dataclasses.dataclass(frozen=True)
class Long:
    """Goes on.

    Attributes:
      kind: this.
      header: put first; None for none.
      words: what is said, a key of `nowhere.NAMES`.
    """

    kind: str = "long"
    header: str | None = None
    words: tuple[str, ...] = ("Wait", "So")


@dataclasses.dataclass(frozen=True)
class ChoiceRun:
    """A run.

    Attributes:
      control: how long a row is.
    """

    control: Short | Long = config.choice(Short(), lambda: {"short": Short, "long": Long})


def test_each_kind_shows_its_own_keys():
    common, short, long = map(str, help.sections(ChoiceRun))
    assert common.splitlines() == [
        "control: how long a row is",
        "  control.kind=short  short: Stops early; long: Goes on (one of short, long)",
        "  control.header=null  put first; null for none (a text or null)",
    ]
    assert short.splitlines() == [
        "control with control.kind=short: Stops early",
        "  control.limit=5  tokens at most (a whole number)",
    ]
    assert long.splitlines()[1] == (
        "  control.words=[Wait, So]  what is said, a key of `nowhere.NAMES` (a list of texts)"
    ), "a registry that is not there stays as it is written"


NAMES = {"one": 1, "two": 2}


@dataclasses.dataclass(frozen=True)
class Inner:
    """What stands inside.

    More of it.

    Attributes:
      size: rows, None for all; a key of `NAMES`.
    """

    size: int | None = 3
    parts: tuple[Short, ...] = (Short(limit=7),)


@dataclasses.dataclass(frozen=True)
class Base:
    """A base.

    Attributes:
      seed, out: of the base.
      size: rows, keys of `NAMES`.
    """

    seed: int = 0
    size: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class WholeRun(Base):
    """A run
    of everything.

    Attributes:
      seed: of the run.
      model: what is run.
      said: with a sentence of its own
      entries: a list.
    """

    model: str
    said: Inner = config.free(Inner(size=5))
    silent: Inner = Inner()
    maybe: Inner | None = None
    other: Inner | Literal["search"] = config.free("search")
    entries: tuple[Short, ...] = config.free(())
    twice: tuple[tuple[int, int], ...] = ((1, 2),)


WHOLE = """the run: A run of everything
  seed=0  of the run (a whole number)
  size=[]  rows, any of one, two (a list of texts)
  model=...  what is run (a text, required)
  maybe=null   (keys of its own or null)
  other=search*   (keys of its own or search)
  entries=[]*  a list (a list of entries: keys of its own)
  twice=[[1, 2]]   (a list of entries: a list of 2 whole numbers)
said: with a sentence of its own
  said.size=5*  rows, null for all; one of one, two (a whole number or null)
  said.parts=[{limit: 7}]*   (a list of entries: keys of its own)
said.parts[]: each entry of the list; Stops early
  said.parts[].kind=short*  this (a text)
  said.parts[].limit=5*  tokens at most (a whole number)
  said.parts[].header=null*  put first; null for none (a text or null)
silent: What stands inside
  silent.size=3  rows, null for all; one of one, two (a whole number or null)
  silent.parts=[{limit: 7}]   (a list of entries: keys of its own)
silent.parts[]: each entry of the list; Stops early
  silent.parts[].kind=short  this (a text)
  silent.parts[].limit=5  tokens at most (a whole number)
  silent.parts[].header=null  put first; null for none (a text or null)
maybe: off by default, on with any of these keys; What stands inside
other: where other is not search; What stands inside
entries[]: each entry of the list; a list
  entries[].kind=short*  this (a text)
  entries[].limit=5*  tokens at most (a whole number)
  entries[].header=null*  put first; null for none (a text or null)"""


def test_the_help_of_a_whole_run():
    """Sentences inherited and overridden, sections in their order, stars of what may change, what is within what."""
    shown = [str(section) for section in help.sections(WholeRun)]
    below = [name for name in ("maybe", "other", "maybe.parts[]", "other.parts[]")]
    parts = {section.name: section for section in help.sections(WholeRun)}
    assert [part.partition(":")[0] for part in shown] == [
        *("the run", "said", "said.parts[]", "silent", "silent.parts[]"),
        *(below[0], below[2], below[1], below[3], "entries[]"),
    ]
    kept = [part for part, name in zip(shown, parts, strict=True) if name not in below]
    heads = [str(parts[name]).partition("\n")[0] for name in below[:2]]
    assert "\n".join([*kept[:-1], *heads, kept[-1]]) == WHOLE
    assert [key.is_free for name in below for key in parts[name].keys] == [False] * 2 + [True] * 2 + [False] * 3 + [
        True
    ] * 3
    assert parts["maybe.parts[]"].about == "each entry of the list; Stops early"


def test_help_of_curate_needs_no_jax():
    code = (
        "import sys; sys.modules['jax'] = None; from s1jax.__main__ import main; sys.exit(main(['curate', '--help']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "sources[].kind" in done.stdout, done.stderr[-2000:]
