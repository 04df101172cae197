"""A pytest plugin: in every call of the project, arrays have the rank and the sizes that their names' letters say.

`x_BTD` has rank 3, and wherever a B stands in the same call it has one size: in other names, in fields of dataclasses
(`Limits.budget_B`), in a local number called `B`. To see the variables of a function its module is compiled with a look
at them before each `return` (pytest compiles `assert` in a like manner). Python's own hook, `sys.setprofile`, would be
called for every function of every library. A function is looked at a bounded number of times in a process; afterwards
a look costs as much as a dictionary's `get`.
"""

import ast
import dataclasses
import importlib.abc
import importlib.machinery
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import CodeType
from typing import Any

import pytest

NAME = re.compile(r"[a-z_][a-z0-9_]*_([A-Z]+)")
LOOKS = 100  # at each function in a process
HOOK = "__look_at_shapes__"


@dataclasses.dataclass(frozen=True)
class Exempt:
    """Names whose arrays are otherwise than their letters say.

    Attributes:
      where: `module.function`, a module, or a package.
      names: variables, `Class.field`, or a `Class` for all of its fields.
      reason: why they are.
      without: letters that are lacking, the others being as they should; None: nothing of the array is compared.
    """

    where: str
    names: tuple[str, ...]
    reason: str
    without: str | None = None


class Shapes:
    """What was seen to be wrong.

    Args:
      alphabet: the letters that may end a name.
      exempt: what is not looked at.
    """

    def __init__(self, alphabet: Iterable[str], exempt: Sequence[Exempt] = ()) -> None:
        self.wrong: dict[tuple[str, str], str] = {}
        self._alphabet, self._exempt = set(alphabet), exempt

    def look(self, where: str, variables: Mapping[str, Any]) -> None:
        """Compare the variables of a call, and the fields of dataclasses among them, with their letters."""
        sizes: dict[str, tuple[int, str]] = {
            name: (value, name)
            for name, value in variables.items()
            if name in self._alphabet and isinstance(value, int) and not isinstance(value, bool)
        }
        for name, value in lettered(variables):
            letters = name.rpartition("_")[2]
            exempt = self._exemption(where, name)
            if exempt is not None and exempt.without is None:
                continue
            if exempt is not None and len(value.shape) < len(letters):
                letters = "".join(letter for letter in letters if letter not in (exempt.without or ""))
            if unknown := set(letters) - self._alphabet:
                self._say(where, name, f"the letter {min(unknown)} stands in no alphabet")
            elif len(value.shape) != len(letters):
                self._say(where, name, f"rank {len(value.shape)}, shape {tuple(value.shape)}")
            else:
                for letter, size in zip(letters, value.shape, strict=True):
                    before, first = sizes.setdefault(letter, (size, name))
                    if before != size:
                        self._say(where, name, f"{letter} is {size} here and {before} in {first}")

    def _exemption(self, where: str, name: str) -> Exempt | None:
        named = {name, name.partition(".")[0]}
        here = (exempt for exempt in self._exempt if f"{where}.".startswith(f"{exempt.where}."))
        return next((exempt for exempt in here if not named.isdisjoint(exempt.names)), None)

    def _say(self, where: str, name: str, what: str) -> None:
        self.wrong.setdefault((where, name), f"{where}: {name}: {what}")


def lettered(variables: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The arrays among variables whose names end in letters; those of dataclasses as `Class.field`."""
    for name, value in variables.items():
        if NAME.fullmatch(name) and isinstance(getattr(value, "shape", None), tuple):
            yield name, value
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
            for inner, array in lettered(fields):
                yield (inner if "." in inner else f"{type(value).__name__}.{inner}"), array


class _Looks(ast.NodeTransformer):
    """Puts a look at the variables before each `return` and at the end of functions that have lettered names."""

    def __init__(self, module: str) -> None:
        self._path, self._look = [module], ""

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._inside(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._function(node)

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        return node

    def visit_Return(self, node: ast.Return) -> Any:
        return [*self._looked(node), node]

    def _inside(self, node: Any) -> Any:
        return self._below(node, "")

    def _below(self, node: Any, look: str) -> Any:
        before, self._look = self._look, look
        self._path.append(node.name)
        self.generic_visit(node)
        self._path.pop()
        self._look = before
        return node

    def _looked(self, before: ast.stmt) -> list[ast.stmt]:
        return [ast.copy_location(line, before) for line in ast.parse(self._look).body]

    def _function(self, node: Any) -> Any:
        names, where = sorted(_own_names(node)), ".".join([*self._path, node.name])
        if not any(map(NAME.fullmatch, names)):
            return self._below(node, "")
        look = f"{HOOK}.left.get({where!r}, 1) and {HOOK}({where!r}, {tuple(names)!r}, locals())"
        node.body.append(ast.copy_location(ast.Return(ast.Constant(None)), node.body[-1]))
        return self._below(node, look)


def _own_names(function: Any) -> set[str]:
    """Arguments and variables of a function, not those of functions inside or outside of it."""
    arguments = function.args
    found = {each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    left = list(function.body)
    while left:
        node = left.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            left += list(ast.iter_child_nodes(node))
    return found


class Looker:
    """What the compiled modules call; `left` says how often a function is still to be looked at."""

    def __init__(self, shapes: Shapes, looks: int = LOOKS) -> None:
        self.shapes, self.left, self._looks = shapes, {}, looks

    def __call__(self, where: str, names: Sequence[str], variables: Mapping[str, Any]) -> None:
        self.left[where] = self.left.get(where, self._looks) - 1
        self.shapes.look(where, {name: variables[name] for name in names if name in variables})


def compile_with_looks(source: str, module: str, path: str = "<looked at>") -> CodeType:
    """The module's code, with looks that call a global `HOOK`."""
    return compile(ast.fix_missing_locations(_Looks(module).visit(ast.parse(source))), path, "exec")


class _Loader(importlib.machinery.SourceFileLoader):
    looker: Looker

    def get_code(self, fullname: str) -> CodeType | None:
        path = self.get_filename(fullname)
        source = self.get_data(path).decode("utf-8")
        if not re.search(r"[a-z0-9_]_[A-Z]+\b", source):
            return super().get_code(fullname)
        return compile_with_looks(source, fullname, path)

    def exec_module(self, module: Any) -> None:
        setattr(module, HOOK, self.looker)
        super().exec_module(module)


class Finder(importlib.abc.MetaPathFinder):
    """Loads the modules of `package` with looks."""

    def __init__(self, package: str, looker: Looker) -> None:
        self._package = package
        self._loader = type("Loader", (_Loader,), {"looker": looker})

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """The usual spec with our loader; None for other packages."""
        if fullname.partition(".")[0] != self._package:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = self._loader(spec.loader.name, spec.loader.path)
        return spec


class Plugin:
    """Fails the test in whose course a shape was wrong."""

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self) -> Any:
        """Fixtures count too."""
        return (yield from self._told())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Any:
        """The test itself."""
        return (yield from self._told())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self) -> Any:
        """What a fixture does in the end."""
        return (yield from self._told())

    def _told(self) -> Any:
        """What is raised inside goes on as it is; what was seen before it belongs to this test and to none after it."""
        try:
            result = yield
        finally:
            wrong = list(self._shapes.wrong.values())
            self._shapes.wrong.clear()
        if wrong:
            pytest.fail("names and shapes disagree:\n  " + "\n  ".join(wrong), pytrace=False)
        return result


def alphabet(axes: pathlib.Path) -> dict[str, str]:
    """`ALPHABET` of the module of axes, read and not imported: what is imported before the plugin is not looked at."""
    for node in ast.parse(axes.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ALPHABET":
            return ast.literal_eval(node.value)
    raise LookupError(f"{axes} has no ALPHABET")


def install(package: str, shapes: Shapes) -> Finder:
    """Look at the modules of `package` that are imported from now on."""
    finder = Finder(package, Looker(shapes))
    sys.meta_path.insert(0, finder)
    return finder
