"""YAML and `dotted.key=value` overrides into frozen dataclasses, strictly.

A config class lives beside the code that reads it. This module knows only that it is a frozen dataclass, and which of
its fields are *free* (may change when a run goes on in the same folder).
"""

import contextlib
import dataclasses
import difflib
import json
import math
import os
import pathlib
import re
import reprlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import yaml
from annotated_types import Ge, Gt, Le, Lt

T = TypeVar("T")
DEEPEST = 50  # levels of nesting in a recipe

# Types of keys that have limits: a value outside them is refused by name before anything is loaded.
Positive = Annotated[int, Ge(1)]
Count = Annotated[int, Ge(0)]
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
PositiveNumber = Annotated[float, Gt(0)]
Amount = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
Decay = Annotated[float, Ge(0), Lt(1)]

_BOUND_WORDS = {Ge: "from", Gt: "above", Le: "to", Lt: "below"}
_BOUND_HOLDS = {
    Ge: lambda x, limit: x >= limit,
    Gt: lambda x, limit: x > limit,
    Le: lambda x, limit: x <= limit,
    Lt: lambda x, limit: x < limit,
}
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 200
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = 12
_REPR.maxlevel = 3


class BadInput(ValueError):
    """The user's input is at fault. The message is one line: the thing, both values, the way out. Exit code 2."""


class _Yaml(yaml.SafeLoader):
    """YAML 1.1 reads `1e-5` as text; a learning rate written that way must be a number. A key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def shown(value: Any) -> str:
    """`repr(value)` for an error of one line; what is long or deep is cut."""
    return _REPR.repr(value)


def free(default: Any = dataclasses.MISSING, *, factory: Any = dataclasses.MISSING) -> Any:
    """A field that may change when a run goes on in an existing folder (mesh, logging, saving, profile, engine)."""
    metadata = {"free": True}
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def by_content(default: Any = dataclasses.MISSING) -> Any:
    """A field that names what a run reads: a path or a hub id. A run is known by the content, not by the name."""
    return dataclasses.field(default=default, metadata={"content": True})


def choice(default: Any, classes: Callable[[], Mapping[str, type]], *, is_free: bool = False) -> Any:
    """A field whose key `kind` picks its config class, so that an entry of a registry owns its fields.

    Args:
      default: an instance of the class taken when no `kind` is given.
      classes: gives the class of each kind when it is called; each has a field `kind` whose default is its name.
      is_free: as `free`.
    """
    return dataclasses.field(default=default, metadata={"choice": classes, "free": is_free})


def load(cls: type[T], path: str | os.PathLike | None = None, overrides: Sequence[str] = ()) -> T:
    """Read `path` (YAML, optional) and `overrides` (`a.b=value`) into the frozen dataclass `cls`.

    The value of an override is YAML; where the key is a text it stands as it is, unless it is quoted or null.

    Raises:
      BadInput: file missing or not a mapping, unknown key (the nearest known key is named), wrong type, missing key.
    """
    data: dict[str, Any] = {}
    if path is not None:
        data = read_yaml(path)
        data.pop("env", None)  # read by __main__, before JAX is loaded
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key:
            raise BadInput(f"override {override!r} is not of the form key=value; write for example seed=1")
        as_it_is = _is_text(cls, key) and value not in ("null", "~") and value[:1] not in ("'", '"')
        _assign(data, key, value if as_it_is else _parse(value, override))
    _refuse_unwritable(data, "")
    return from_dict(cls, data)


def _refuse_unwritable(value: Any, where: str, seen: tuple[int, ...] = (), known: set[int] | None = None) -> None:
    """Raises BadInput for what no path and no file of UTF-8 can hold, and for a list or mapping that holds itself.

    Args:
      seen: the containers around it. known: those that were looked at; YAML's aliases make one stand in many places.
    """
    known = set() if known is None else known
    if isinstance(value, str) and (found := re.search("[\0\ud800-\udfff]", value)):
        what = "a NUL character" if found[0] == "\0" else "half a character (a lone surrogate)"
        raise BadInput(f"key {where!r} is {shown(value)}, which holds {what}; leave that out")
    if id(value) in seen or len(seen) > DEEPEST:
        raise BadInput(f"key {shown(where)} holds itself, or is nested more than {DEEPEST} deep; write it out")
    if isinstance(value, dict | list) and id(value) not in known:
        known.add(id(value))
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _refuse_unwritable(item, f"{where}.{key}" if where else str(key), (*seen, id(value)), known)


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """The mapping in a YAML file. Raises BadInput when it is missing, not YAML or not a mapping."""
    file = pathlib.Path(path)
    if not file.is_file():
        raise BadInput(f"config file {file} does not exist; give the path of a YAML file or only key=value pairs")
    try:
        data = yaml.load(file.read_text(encoding="utf-8"), Loader=_Yaml)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise BadInput(f"config file {file} is not YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise BadInput(f"config file {file} cannot be read ({error.strerror}); give the path of a YAML file") from None
    except RecursionError:
        raise BadInput(f"config file {file} is nested too deeply to be a config; give another file") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise BadInput(f"config file {file} holds a {type(data).__name__}, not key: value pairs")
    return data


def _is_text(cls: Any, key: str) -> bool:
    """The key takes texts and nothing else. YAML would cut `Problem #3` at the `#` and make a mapping of `x: 1`."""
    hints = [cls]
    for part in key.split("."):
        nested = [h for hint in hints for h in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(h)]
        hints = [hint for owner in nested for hint in _hints_of(owner, part)]
    return bool(hints) and all(hint in (str, str | None) for hint in hints)


def _hints_of(cls: Any, name: str) -> list[Any]:
    """What the field may be: its type, or the classes that its kind picks from; nothing without such a field."""
    for field in dataclasses.fields(cls):
        if field.name == name:
            return (
                list(field.metadata["choice"]().values())
                if "choice" in field.metadata
                else [typing.get_type_hints(cls)[name]]
            )
    return []


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Yaml) if text else ""
    except (yaml.YAMLError, ValueError, RecursionError):
        raise BadInput(f"the value in {shown(where)} is not YAML; quote it if it is text") from None


def _assign(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = data.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise BadInput(f"key {key!r} goes below {parent!r}, which is already set to {inner!r}; set one of the two")
        data = inner
    data[last] = value


def from_dict(cls: type[T], data: Mapping[str, Any], where: str = "", base: Any = None) -> T:
    """Build the dataclass `cls` from plain data, naming the full key in every error.

    Args:
      base: a config whose values stand where `data` has none, if it is a `cls`; else the defaults of `cls` do.

    Raises:
      BadInput: an unknown key, a missing one, or a value of another type.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            near = difflib.get_close_matches(str(key)[:100], fields, n=1, cutoff=0.0)
            raise BadInput(f"unknown key {shown(where + str(key))}; the nearest known key is {where + near[0]!r}")
    values = {}
    for name, field in fields.items():
        own = getattr(base, name) if isinstance(base, cls) else field.default
        if name in data and "choice" in field.metadata:
            values[name] = _choose(field, data[name], where + name)
        elif name in data:
            values[name] = convert(hints[name], data[name], where + name, own)
        elif isinstance(base, cls):
            values[name] = own
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise BadInput(f"key {where + name!r} is missing; add {where + name}=... ({in_words(hints[name])})")
    return cls(**values)


def _choose(field: dataclasses.Field, value: Any, where: str) -> Any:
    """The config of the kind that `value` names. Raises BadInput, with the kinds that have it, for another's field."""
    classes = field.metadata["choice"]()
    if not isinstance(value, Mapping):
        raise BadInput(
            f"key {where!r} is {shown(value)} ({type(value).__name__}); it must be keys, the first of them kind"
        )
    kind = value.get("kind", getattr(field.default, "kind", None))
    if not isinstance(kind, str) or kind not in classes:
        raise BadInput(f"key {where + '.kind'!r} is {kind!r}; it must be one of {', '.join(map(repr, classes))}")
    names = {name: {each.name for each in dataclasses.fields(cls)} for name, cls in classes.items()}
    for key in value:
        owners = [name for name in classes if key in names[name]]
        if owners and kind not in owners:
            raise BadInput(
                f"{where}.{key} is for {where}.kind={' or '.join(owners)}, and {where}.kind is {kind}; leave one "
                "of the two out"
            )
    return from_dict(classes[kind], {"kind": kind, **value}, f"{where}.")


def convert(hint: Any, value: Any, where: str, base: Any = None) -> Any:
    """`value` as the type `hint`; `base`: a config whose values stand where a nested one has none.

    Raises:
      BadInput: another type, or outside its limits; `where` names the key.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        found = convert(arguments[0], value, where, base)
        if not all(_BOUND_HOLDS[type(bound)](found, *dataclasses.astuple(bound)) for bound in arguments[1:]):
            raise BadInput(f"key {where!r} is {shown(value)}; it must be {in_words(hint)}")
        return found
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, where, base)
    if origin is typing.Literal:
        if value in arguments and type(value) in {type(a) for a in arguments}:
            return value
        raise BadInput(f"key {where!r} is {shown(value)}; it must be one of {', '.join(map(repr, arguments))}")
    if dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return from_dict(hint, value, where + ".", base)  # type: ignore[arg-type]
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            inner = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
            if len(inner) == len(value):
                return tuple(convert(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(inner, value, strict=True)))
    elif origin in (dict, Mapping) or hint is dict:
        if isinstance(value, Mapping):
            return dict(value)
    elif hint is Any:
        return value
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if math.isfinite(value) if isinstance(value, float) else abs(value) < 2**1023:
            return float(value)
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        if not isinstance(value, int) or abs(value) < 2**63:
            return value
    raise BadInput(f"key {where!r} is {shown(value)} ({type(value).__name__}); it must be {in_words(hint)}")


def _convert_union(options: tuple[Any, ...], value: Any, where: str, base: Any = None) -> Any:
    if value is None and type(None) in options:
        return None
    nested = [option for option in options if dataclasses.is_dataclass(option)]
    if isinstance(value, Mapping) and len(nested) == 1:
        return convert(nested[0], value, where, base)  # its own error says more than "it must be a or b"
    for option in options:
        with contextlib.suppress(BadInput):
            if option is not type(None):
                return convert(option, value, where, base)
    wanted = " or ".join(in_words(option) for option in options)
    raise BadInput(f"key {where!r} is {shown(value)} ({type(value).__name__}); it must be {wanted}")


_WORDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "names and values",
    type(None): "null",
    Any: "anything",
}
_SEVERAL = {str: "texts", int: "whole numbers", float: "numbers"}


def in_words(hint: Any) -> str:
    """A type as a person would write it: `a whole number or auto`, `a list of texts`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return f"{in_words(arguments[0])} {_bounds(arguments[1:])}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(in_words, arguments))
    if origin is typing.Literal:
        return " or ".join(map(str, arguments))
    if origin is tuple and arguments[1:] == (...,):
        kind, *bounds = typing.get_args(arguments[0]) if typing.get_origin(arguments[0]) is Annotated else arguments[:1]
        several = _SEVERAL.get(kind)
        within = f" {_bounds(bounds)}" if bounds else ""
        return f"a list of {several + within if several else f'entries: {in_words(arguments[0])}'}"
    if origin is tuple:
        is_alike = len(set(arguments)) == 1 and arguments[0] in _SEVERAL
        return f"a list of {len(arguments)}" + (
            f" {_SEVERAL[arguments[0]]}" if is_alike else f": {', '.join(map(in_words, arguments))}"
        )
    if dataclasses.is_dataclass(hint):
        return "keys of its own"
    return _WORDS.get(origin or hint) or getattr(hint, "__name__", str(hint))


def _bounds(bounds: Sequence[Any]) -> str:
    """`from 0 to 1`."""
    return " ".join(f"{_BOUND_WORDS[type(bound)]} {dataclasses.astuple(bound)[0]}" for bound in bounds)


def to_dict(config: Any) -> dict[str, Any]:
    """Plain data of a config (tuples as lists), such that `from_dict(type(config), to_dict(config)) == config`."""
    return json.loads(json.dumps(dataclasses.asdict(config)))
