"""What `s1jax VERB --help` says of the keys: name and default as they are written, a sentence, the type.

The sentences are those of the config classes' docstrings (`Attributes:`), so that a key is explained once, beside the
code that reads it. Where a sentence says "a key of `module.REGISTRY`", help names the registry's entries instead.
"""

import dataclasses
import importlib
import inspect
import re
import sys
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from s1jax.config import in_words


@dataclasses.dataclass(frozen=True)
class KeyLine:
    """One line of help.

    Attributes:
      name: dotted.
      value: the default as YAML; None for a key that must be given, "" for one whose own keys follow below.
      sentence: what it means.
      type: in words.
      is_free: it may change when a run goes on in its folder.
      is_optional: its section need not be there.
    """

    name: str
    value: str | None
    sentence: str
    type: str
    is_free: bool = False
    is_optional: bool = False

    def __str__(self) -> str:
        value = "=..." if self.value is None else f"={self.value}" if self.value else ""
        required = "" if self.value is not None else ", required here" if self.is_optional else ", required"
        return f"{self.name}{value}{'*' if self.is_free else ''}  {self.sentence.rstrip('.')} ({self.type}{required})"


@dataclasses.dataclass(frozen=True)
class Section:
    """Keys of one config class: where it stands (`""` for the run itself), what it is for."""

    name: str
    about: str
    keys: tuple[KeyLine, ...]

    def __str__(self) -> str:
        return "\n".join([f"{self.name or 'the run'}: {self.about.rstrip('.')}", *(f"  {key}" for key in self.keys)])


def sections(cls: type) -> list[Section]:
    """The keys of a run's config class, and of the configs nested in it, each below the one that holds it."""
    return list(_sections(cls, "", _summary(cls)))


def sentences(cls: type) -> dict[str, str]:
    """KeyLine -> its sentence, from the `Attributes:` of the class and of those that it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        for names, sentence in _attributes(base.__dict__.get("__doc__")):
            found |= {name.strip(): _with_entries(sentence, base) for name in names.split(",")}
    return found


def _attributes(doc: str | None) -> Iterator[tuple[str, str]]:
    """(names before the colon, sentence) of each entry of a docstring's `Attributes:`; its lines are joined."""
    block = re.search(r"^Attributes:\n((?:.+\n?)+)", inspect.cleandoc(doc or ""), re.MULTILINE)
    if block is not None:
        for entry in re.split(r"\n(?=\S)", inspect.cleandoc("\n" + block[1])):
            names, _, sentence = entry.partition(":")
            yield names, " ".join(sentence.split())


def _with_entries(sentence: str, cls: type) -> str:
    """The sentence as the user of a command reads it: registries by their entries, None as YAML writes it."""

    def entries(match: re.Match[str]) -> str:
        try:
            names = ", ".join(map(str, _registry(match[2], cls)))
        except (ImportError, AttributeError):
            return match[0]
        return f"{'any' if match[1] else 'one'} of {names}"

    return re.sub(r"\bNone\b", "null", re.sub(r"(?:\ba )?\bkey(s?) of `([\w.]*\b[A-Z]+)`", entries, sentence))


def _registry(name: str, cls: type) -> Any:
    """What a dotted name stands for: a name of the class's module, or a module's path and a name in it."""
    path, _, last = name.rpartition(".")
    return getattr(importlib.import_module(path) if path else sys.modules[cls.__module__], last)


def _summary(cls: type) -> str:
    first = inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0]
    return " ".join(first.split()).rstrip(".")


def _sections(
    cls: type, prefix: str, about: str, default: Any = None, note: str = "", is_free: bool = False
) -> Iterator[Section]:
    """As `sections`, for the keys below `prefix`; `note` says when the section counts at all."""
    hints, said = typing.get_type_hints(cls, include_extras=True), sentences(cls)
    keys, below = [], []
    for field in dataclasses.fields(cls):
        name, sentence = f"{prefix}{field.name}", said.get(field.name, "")
        value = getattr(default, field.name, _default(field))
        is_own_free = is_free or bool(field.metadata.get("free"))
        if "choice" in field.metadata:
            below.append(_choice(field, name, sentence))
            continue
        hint = hints[field.name]
        if not dataclasses.is_dataclass(hint):
            keys.append(KeyLine(name, _yaml(value), sentence, in_words(hint), is_own_free, bool(note)))
        for each, suffix, when in _nested(hint, name):
            held = value if isinstance(value, each) else None
            about_each = sentence or _summary(each)
            below.append(_sections(each, f"{name}{suffix}.", about_each, held, when or note, is_own_free))
    if keys:
        yield Section(prefix.rstrip("."), note + about, tuple(keys))
    for each in below:
        yield from each


def _nested(hint: Any, name: str) -> Iterator[tuple[type, str, str]]:
    """(config class, what follows the name of its key, when it counts) for those that the key may hold."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint, "", ""
    arguments = typing.get_args(hint)
    for each in arguments:
        if not (isinstance(each, type) and dataclasses.is_dataclass(each)):
            continue
        if typing.get_origin(hint) is tuple:
            yield each, "[]", "each entry of the list; "
        elif type(None) in arguments:
            yield each, "", "off by default, on with any of these keys; "
        else:
            others = " or ".join(in_words(other) for other in arguments if other is not each)
            yield each, "", f"where {name} is not {others}; "


def _choice(field: dataclasses.Field, name: str, sentence: str) -> Iterator[Section]:
    """What all kinds have, then what each has beside it."""
    classes: Mapping[str, type] = field.metadata["choice"]()
    kind = getattr(field.default, "kind", None)
    own = {each: [key for part in _sections(cls, f"{name}.", "") for key in part.keys] for each, cls in classes.items()}
    names = {f"{name}.kind"}
    common = tuple(key for key in own[kind or next(iter(own))] if all(key in keys for keys in own.values()))
    about = "; ".join(f"{each}: {_summary(cls)}" for each, cls in classes.items())
    choose = KeyLine(f"{name}.kind", kind, about, f"one of {', '.join(classes)}", bool(field.metadata.get("free")))
    yield Section(name, sentence, (choose, *(key for key in common if key.name not in names)))
    for each, cls in classes.items():
        left = tuple(key for key in own[each] if key not in common and key.name not in names)
        if left:
            yield Section(f"{name} with {name}.kind={each}", _summary(cls), left)


def _default(field: dataclasses.Field) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _yaml(value: Any) -> str | None:
    """A default as it would be written after `key=`; None where there is none, "" for a config of its own keys."""
    if value is dataclasses.MISSING:
        return None
    if dataclasses.is_dataclass(value):
        return ""
    plain = list(map(_plain, value)) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()


def _plain(value: Any) -> Any:
    """An entry of a list: tuples as lists, of a config the keys that are not at their defaults."""
    if dataclasses.is_dataclass(value):
        own = {field.name: (getattr(value, field.name), _default(field)) for field in dataclasses.fields(value)}
        return {name: held for name, (held, default) in own.items() if held != default}
    return list(value) if isinstance(value, tuple) else value
