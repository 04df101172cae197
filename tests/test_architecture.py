"""The shape of the house: who may import whom, how large things may be, what may not be written."""

import ast
import functools
import importlib.metadata
import itertools
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("s1jax/**/*.py"), *ROOT.glob("curation/**/*.py")])
CODE = sorted([*FILES, *ROOT.glob("tools/*.py"), *ROOT.glob("tests/**/*.py")])

# Lower rooms first; a room sees itself and the rooms below it.
ROOMS = [
    {"s1jax.config", "s1jax.help", "s1jax.hub", "s1jax.records", "s1jax.tables"}
    | {"s1jax.runs", "s1jax.text", "s1jax.grading", "s1jax.benchmarks"},
    {"s1jax.parallel"},
    {"s1jax.models", "s1jax.checkpoint"},
    {"s1jax.engine"},
    {"s1jax.control", "s1jax.train"},
    {"s1jax.methods"},
    {"s1jax.eval", "s1jax.serve", "s1jax.plan"},
    {"s1jax.quickstart"},
    {"s1jax.__main__"},
    {"s1jax.api"},
    {"s1jax"},
]
STRANGERS = [("s1jax.control", "s1jax.train"), ("s1jax.train", "s1jax.control"), ("s1jax.train", "s1jax.engine")]
STRANGERS += [("s1jax.models", "s1jax.checkpoint")]
WITHOUT_JAX = ["s1jax", "s1jax.config", "s1jax.records", "s1jax.tables", "s1jax.runs.folder", "s1jax.text.render"]
WITHOUT_JAX += ["s1jax.grading.pool", "s1jax.benchmarks", "s1jax.eval.stats", "s1jax.eval.scaling", "curation.run"]
WITHOUT_JAX += ["s1jax.eval.grade"]
NNX = {"Module", "Param", "Rngs", "initializers", "List", "eval_shape"}


def name_of(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def tree_of(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def edges() -> dict[str, set[str]]:
    """Module -> modules of ours that it imports anywhere (a function's own imports count too)."""
    modules = {name_of(path) for path in FILES}
    graph = {}
    for path in FILES:
        found = set()
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= (inner & modules) or {node.module}
        graph[name_of(path)] = (found & modules) - {name_of(path)}
    return graph


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def rank(module: str) -> int:
    return next(level for level, rooms in enumerate(ROOMS) if room(module) in rooms)


def ours(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    return [(source, target) for source, targets in graph.items() for target in targets if target != "s1jax"]


def test_every_module_has_a_room():
    for path in FILES:
        module = name_of(path)
        if module.startswith("s1jax."):
            assert any(room(module) in rooms for rooms in ROOMS), f"{module} belongs to no room of {__file__}"


def test_imports_go_down_only():
    for source, target in ours(edges()):
        if source.startswith("curation"):
            assert target.startswith("curation") or rank(target) == 0, (
                f"{source} -> {target}: curation sees only rooms without JAX"
            )
        elif target.startswith("curation"):
            assert room(source) in ("s1jax.__main__", "s1jax.quickstart", "s1jax.api"), f"{source} -> {target}"
        else:
            assert rank(source) >= rank(target), f"{source} -> {target} goes up"
            assert (room(source), room(target)) not in STRANGERS, (
                f"{source} -> {target}: these rooms do not know each other"
            )


def test_every_package_imported_is_declared():
    """What only the tests install (torch brings jinja2) must not be all that a user lacks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    declared = {re.split(r"[^\w-]", line)[0].lower() for line in lines}
    known = importlib.metadata.packages_distributions()
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"s1jax", "curation"}:
                owners = {owner.lower().replace("_", "-") for owner in known.get(name, [name])}
                assert owners & declared, f"{name_of(path)} imports {name}, which pyproject.toml does not declare"


def test_no_cycle_and_a_short_chain():
    graph, depth, open_ = edges(), {}, []

    def chain(module: str) -> int:
        assert module not in open_, f"import cycle {open_[open_.index(module) :] + [module]}"
        if module not in depth:
            open_.append(module)
            depth[module] = 1 + max((chain(target) for target in sorted(graph[module])), default=0)
            open_.pop()
        return depth[module]

    longest = max(graph, key=chain)
    assert depth[longest] <= 12, f"{longest} heads a chain of {depth[longest]} imports"


def test_short_chains_within_a_room():
    graph, depth = edges(), {}

    def chain(module: str) -> int:
        if module not in depth:
            inside = [target for target in graph[module] if room(target) == room(module)]
            depth[module] = 1 + max(map(chain, inside), default=0)
        return depth[module]

    longest = max(graph, key=chain)
    assert depth[longest] <= 7, f"{longest} heads a chain of {depth[longest]} imports inside {room(longest)}"


def test_nobody_imports_tools_or_tests():
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] in ("tools", "tests") for name in names), path


@pytest.mark.parametrize("module", WITHOUT_JAX)
def test_pure_rooms_do_not_load_jax(module):
    code = f"import sys; sys.modules['jax'] = None; sys.modules['flax'] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


def test_size_of_files_and_functions():
    lengths = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in CODE}
    functions = {
        f"{path}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in CODE
        for node in ast.walk(tree_of(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert not {name: n for name, n in lengths.items() if n > 400}
    assert not {name: n for name, n in functions.items() if n > 80}
    assert sum(n <= 300 for n in lengths.values()) >= 0.9 * len(lengths)
    assert sum(n <= 40 for n in functions.values()) >= 0.95 * len(functions)


def test_only_models_see_flax_and_only_six_names_of_it():
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            imported = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            if (module or "").startswith("flax") or any(name.startswith("flax") for name in imported if not module):
                assert name_of(path).startswith("s1jax.models"), f"{path} imports flax"
                assert (module, imported) == ("flax", ["nnx"]), (
                    f"{path}:{node.lineno}: import nnx from flax, nothing else"
                )
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nnx":
                assert node.attr in NNX, f"{path}:{node.lineno}: nnx.{node.attr}"


def test_no_attribute_is_assigned_to_a_module_outside_init():
    """Inside `jax.jit` such an assignment takes effect in the trace and is silently lost outside."""
    for path in FILES:
        if not name_of(path).startswith("s1jax.models"):
            continue
        inits = {
            id(inner)
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.FunctionDef) and node.name == "__init__"
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree_of(path)):
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = targets or ([node.target] if isinstance(node, (ast.AugAssign, ast.AnnAssign)) else [])
            for target in targets:
                assert id(node) in inits or not isinstance(target, ast.Attribute), f"{path}:{node.lineno}"


def config_classes() -> dict[str, ast.ClassDef]:
    """Every dataclass that can stand in a recipe: the verbs' run configs and those nested in them, by annotation."""
    classes = {node.name: node for path in FILES for node in ast.walk(tree_of(path)) if isinstance(node, ast.ClassDef)}
    reached, open_ = {}, [name for name in classes if name.endswith("Run")]
    while open_:
        name = open_.pop()
        if name in reached or name not in classes:
            continue
        reached[name] = classes[name]
        for field in classes[name].body:
            if isinstance(field, ast.AnnAssign):
                open_ += [node.id for node in ast.walk(field.annotation) if isinstance(node, ast.Name)]
                open_ += [node.attr for node in ast.walk(field.annotation) if isinstance(node, ast.Attribute)]
    return reached


def test_every_knob_is_read():
    """In the module of its class, or in one that imports that module: a field of that name elsewhere is another's.

    What every run has (`out`) is read where its folder is opened.
    """
    home = {node.name: name_of(path) for path in FILES for node in tree_of(path).body if isinstance(node, ast.ClassDef)}
    read = {
        name_of(path): {n.attr for n in ast.walk(tree_of(path)) if isinstance(n, ast.Attribute) and is_load(n)}
        for path in FILES
    }
    for name, cls in config_classes().items():
        near = [module for module, targets in edges().items() if home[name] in {module, *targets}]
        known = read["s1jax.runs.folder"].union(*(read[module] for module in near))
        for field in cls.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                assert field.target.id in known, f"{name}.{field.target.id} is a knob that nothing reads"


def is_load(node: ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Load)


GLOBAL_DRAWS = {"random", "randint", "randrange", "choice", "choices", "sample", "shuffle", "uniform", "normal", "seed"}


def test_no_test_draws_without_a_seed():
    """A generator is made of a seed; the global ones, which every test shares, are not drawn from."""
    for path in ROOT.glob("tests/**/*.py"):
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.Call) or not isinstance(node.func, (ast.Attribute, ast.Name)):
                continue
            name = ast.unparse(node.func)
            is_made = name.rpartition(".")[2] in ("default_rng", "Random", "RandomState")
            assert node.args or node.keywords or not is_made, f"{path}:{node.lineno}: {name}() has no seed"
            owner, _, function = name.rpartition(".")
            is_global = owner in ("random", "np.random", "numpy.random") and function in GLOBAL_DRAWS | {
                "normal",
                "rand",
            }
            assert not is_global, f"{path}:{node.lineno}: {name} draws from what all share; make a generator of a seed"


def test_recipes_load():
    """Every YAML under configs/ names only keys that exist, and opens with its command, hardware and expectation."""
    from s1jax import __main__ as cli

    recipes = sorted(ROOT.glob("configs/**/*.yaml"))
    assert recipes
    for path in recipes:
        head = path.read_text(encoding="utf-8").split("\n\n")[0]
        verb = next((word for word in cli.VERBS if f"s1jax {word} " in head), None)
        assert verb, f"{path} does not open with its command"
        for word in ("hardware", "expect"):
            assert word in head.lower(), f"{path} does not say its {word}"
        cli.load_config(verb, str(path), [])


def test_links_and_recipes_of_the_documents_exist():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        text = path.read_text(encoding="utf-8")
        links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
        named = [path.parent / link for link in links] + [
            ROOT / name for name in re.findall(r"configs/[\w/]+\.yaml", text)
        ]
        for target in named:
            assert target.exists(), f"{path} names {target}, which does not exist"


def test_no_two_types_share_a_name():
    """Classes and named types (`Rules = Mapping[...]`): who reads a name knows which is meant."""
    places: dict[str, list[str]] = {}
    for path in FILES:
        named = [node.name for node in ast.walk(tree_of(path)) if isinstance(node, ast.ClassDef)]
        assigned = [node.targets[0] for node in tree_of(path).body if isinstance(node, ast.Assign)]
        named += [node.id for node in assigned if isinstance(node, ast.Name) and re.match("[A-Z][a-z]", node.id)]
        for name in named:
            places.setdefault(name, []).append(name_of(path))
    assert not {name: where for name, where in places.items() if len(where) > 1}


def test_tools_import_each_other_in_no_circle():
    names = {path.stem: tree_of(path) for path in ROOT.glob("tools/*.py")}
    graph = {
        name: {
            each
            for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for each in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module])
            if each in names
        }
        for name, tree in names.items()
    }
    while leaves := [name for name, below in graph.items() if not below & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, f"tools import each other in a circle: {graph}"


@pytest.mark.parametrize("word", ["TODO", "FIXME", "XXX", "NotImplementedError"])
def test_nothing_is_left_for_later(word):
    for path in [*FILES, *ROOT.glob("tools/*.py")]:
        assert word not in path.read_text(encoding="utf-8"), f"{path} holds {word}"
