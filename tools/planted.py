"""Makes this process import changed sources. Also run at the start of every process that a test starts.

`S1JAX_PLANTED` names a JSON file: path of a module -> path of the text that is imported in its place.
`S1JAX_REACHED` names a folder: the functions of ours that a process entered are left there as lines of a file.
"""

import ast
import builtins
import importlib.abc
import importlib.machinery
import json
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent
reached: set[str] = set()


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles a module so that its functions say when they are entered; nothing is kept as bytecode."""

    def get_code(self, fullname):
        tree = ast.parse(self.get_data(self.path))
        _watch(tree, os.path.relpath(self.path, ROOT))
        return compile(tree, self.path, "exec", dont_inherit=True)


def _watch(tree: ast.Module, path: str) -> None:
    """Every function says so when it is entered."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = 1 if ast.get_docstring(node) is not None else 0
            call = ast.parse(f"__reached__({f'{path}:{node.lineno}'!r})").body[0]
            for inner in ast.walk(call):
                ast.copy_location(inner, node.body[0])
            node.body.insert(first, call)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] not in ("s1jax", "curation"):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec and spec.origin:
            spec.loader = _Loader(fullname, spec.origin)
        return spec


def _plant(table: dict[str, str]) -> None:
    """Whatever loader reads one of these files, that of the tests' plugin too, reads the other text; not bytecode."""
    loader = importlib.machinery.SourceFileLoader
    read, stats = loader.get_data, loader.path_stats

    def get_data(self, path):
        return read(self, table.get(path, path))

    def path_stats(self, path):
        if path in table:
            raise OSError(f"{path} is planted")
        return stats(self, path)

    loader.get_data, loader.path_stats = get_data, path_stats  # type: ignore[method-assign]


def _note(name: str) -> None:
    """At once, since a process may be killed."""
    if name not in reached:
        reached.add(name)
        with open(os.path.join(os.environ["S1JAX_REACHED"], f"{os.getpid()}.txt"), "a") as file:
            file.write(name + "\n")


class First:
    """A pytest plugin: the finder that watches comes before one that a conftest has put in place."""

    def pytest_sessionstart(self) -> None:
        sys.meta_path.sort(key=lambda finder: not isinstance(finder, _Finder))


def install() -> None:
    """Read the two variables and take the place of the usual import. Nothing happens where neither is set."""
    named, folder = os.environ.get("S1JAX_PLANTED"), os.environ.get("S1JAX_REACHED")
    if named:
        _plant(json.loads(pathlib.Path(named).read_text()))
    if folder:
        sys.meta_path.insert(0, _Finder())
        # In the process of the tests the set itself is read after each of them.
        builtins.__reached__ = reached.add if __name__ == "planted" else _note  # type: ignore[attr-defined]


install()
