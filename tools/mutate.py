"""Plants slips in the sources, one at a time and in memory, and says which of them no test sees.

    python tools/mutate.py --map tests/plan            # which functions each test enters (kept in build/)
    python tools/mutate.py s1jax/plan --count 24 --seed 1
    python tools/mutate.py --survivors                 # those of tools/faults.yaml: every one must be found
    python tools/mutate.py --count 100 --seed 9 --record docs/mutation.md

A slip is seen when a test fails, the import fails or the time runs out. Each runs in a fork of a process in which the
libraries are imported already, first against the tests that lie where the module lies, then against all that enter the
function. Where no mapped test enters it, the whole folder of its package is run.
"""

import argparse
import ast
import collections
import contextlib
import importlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from typing import Any

import yaml

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from slips import Finder, Slip, swaps_of_fields  # noqa: E402  (a tool, not a package)

ROOT = pathlib.Path(__file__).parent.parent
MAP = ROOT / "build" / "reached.json"
FAULTS = ROOT / "tools" / "faults.yaml"
LIBRARIES = ["numpy", "yaml", "jax", "jax.numpy", "flax.nnx", "optax", "transformers", "torch"]
LIBRARIES += ["orbax.checkpoint.v1", "tensorstore", "grain", "sympy", "math_verify", "safetensors.numpy", "matplotlib"]
QUIETLY = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of libraries that are imported before pytest starts
SKIP = ("s1jax/__init__.py",)
HEAD = """# Slips that the tests see

Made by `tools/mutate.py`, which says what it plants and how; the words on what is not seen are ours."""


class Watcher:
    """A pytest plugin that notes the functions each test enters, those of the processes it starts included."""

    def __init__(self, reached: set[str], folder: pathlib.Path) -> None:
        self.reached, self.folder, self.found = reached, folder, {}

    def pytest_runtest_logreport(self, report) -> None:
        entry = self.found.setdefault(report.nodeid, {"seconds": 0.0, "reached": set()})
        entry["seconds"] += report.duration
        for left in self.folder.glob("*.txt"):
            self.reached |= set(left.read_text().splitlines())
            left.unlink()
        entry["reached"] |= self.reached
        if report.when == "teardown" or report.nodeid.partition("::")[2] == "":
            self.reached.clear()


def main() -> None:
    options = arguments()
    prepare()
    if options.map:
        for file in test_files(options.map):
            write_map(file)
        return
    slips = listed(options.faults, options.only) if options.survivors else sample(options)
    results = []
    for number, slip in enumerate(slips, 1):
        started = time.monotonic()
        verdict, seen_by = trial(slip, options.seconds)
        results.append((slip, verdict))
        print(f"{number}/{len(slips)} {verdict} {time.monotonic() - started:.0f}s {slip} {seen_by}", flush=True)
    summary = count(results)
    print(summary)
    if options.record:
        record(options, results, summary)
    if options.survivors and any(verdict == "missed" for _, verdict in results):
        sys.exit(1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", default=["s1jax", "curation"], help="folders or files to plant slips in")
    parser.add_argument("--count", type=int, default=24, help="slips drawn")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--survivors", action="store_true", help="plant the listed faults instead")
    parser.add_argument("--seconds", type=float, default=150.0, help="of tests against one slip, as the map has them")
    parser.add_argument("--faults", type=pathlib.Path, default=FAULTS, help="the list of `--survivors`")
    parser.add_argument("--only", default="", help="of the listed faults, those whose file or note contains this")
    parser.add_argument("--map", nargs="+", help="test files or folders whose reach is measured")
    parser.add_argument("--record", type=pathlib.Path, help="write the run to this file")
    return parser.parse_args()


def prepare() -> None:
    """The environment of the tests, and the libraries, in the process that is forked."""
    sys.path.insert(0, str(ROOT / "tests"))
    os.chdir(ROOT)
    importlib.import_module("conftest")
    del sys.modules["conftest"]
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    start = pathlib.Path(tempfile.mkdtemp(prefix="s1jax_slips_"))
    (start / "sitecustomize.py").write_text(f"import runpy\nrunpy.run_path({str(ROOT / 'tools' / 'planted.py')!r})\n")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(start), str(ROOT), os.environ.get("PYTHONPATH", "")])
    sys.path.insert(0, str(ROOT))


def test_files(paths: list[str]) -> list[str]:
    """The test files in these files and folders, relative to the root."""
    found = []
    for path in map(pathlib.Path, paths):
        found += sorted(path.glob("**/test_*.py")) if path.is_dir() else [path]
    return [os.path.relpath(path.resolve(), ROOT) for path in found]


def forked(body, limit: float) -> tuple[int | None, str]:
    """Exit code of `body()` in a fork (None: stopped at the limit) and what it printed."""
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if child == 0:
            os.setsid()
            for stream in (1, 2):
                os.dup2(said.fileno(), stream)
            code = 99
            try:
                code = int(body())
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        code = _wait(child, limit)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what the tests have left running
        said.seek(0)
        return code, said.read()


def _wait(child: int, limit: float) -> int | None:
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def run_tests(nodes: list[str], planted: dict[str, str] | None = None, plugins: tuple = ()) -> int:
    """pytest over these tests in this process, ending at the first failure where something is planted."""
    if planted:
        table = pathlib.Path(tempfile.mkstemp(prefix="s1jax_slips_")[1])
        table.write_text(json.dumps(planted))
        os.environ["S1JAX_PLANTED"] = str(table)
    import planted as imports
    import pytest

    extra = (imports.First(), *(plugin(imports.reached) for plugin in plugins))
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=line", "-rN", *QUIETLY] + ["-x"] * bool(planted)
    return int(pytest.main([*options, *nodes], plugins=extra))


def write_map(file: str) -> None:
    """Measure which functions each test of `file` enters, and keep it."""
    with tempfile.TemporaryDirectory() as folder:
        result = pathlib.Path(folder) / "result.json"

        def body() -> int:
            os.environ["S1JAX_REACHED"] = folder
            watchers = []

            def watcher(reached: set[str]) -> Watcher:
                watchers.append(Watcher(reached, pathlib.Path(folder)))
                return watchers[0]

            code = run_tests([file], plugins=(watcher,))
            found = {node: entry | {"reached": sorted(entry["reached"])} for node, entry in watchers[0].found.items()}
            result.write_text(json.dumps(found))
            return code

        code, said = forked(body, 1800)
        found = json.loads(result.read_text()) if result.exists() else {}
    known = json.loads(MAP.read_text()) if MAP.exists() else {}
    known = {node: entry for node, entry in known.items() if node.partition("::")[0] != file} | found
    MAP.parent.mkdir(exist_ok=True)
    MAP.write_text(json.dumps(known))
    seconds = sum(entry["seconds"] for entry in found.values())
    print(f"{file}: {len(found)} tests, {seconds:.0f} s, exit code {code}", flush=True)
    if code:
        print(said[-1500:])


def sample(options: argparse.Namespace) -> list[Slip]:
    """`--count` slips: first a kind is drawn, then one of it, so that the commonest kind does not fill the draw."""
    files = [path for package in options.packages for path in sorted(pathlib.Path(package).resolve().glob("**/*.py"))]
    files += [pathlib.Path(path).resolve() for path in options.packages if path.endswith(".py")]
    swaps = swaps_of_fields(sorted([*ROOT.glob("s1jax/**/*.py"), *ROOT.glob("curation/**/*.py")]))
    kinds = collections.defaultdict(list)
    for path in files:
        if os.path.relpath(path, ROOT) not in SKIP:
            for slip in Finder(ROOT, path, swaps).find():
                kinds[slip.kind.partition(" in ")[0]].append(slip)
    draw = random.Random(options.seed)
    chosen: dict[Slip, None] = {}
    names = sorted(kinds)
    weights = [len(kinds[name]) ** 0.5 for name in names]
    while len(chosen) < min(options.count, sum(map(len, kinds.values()))):
        chosen[draw.choice(kinds[draw.choices(names, weights)[0]])] = None
    return sorted(chosen, key=lambda slip: (slip.path, slip.start))


def listed(path: pathlib.Path, only: str) -> list[Slip]:
    """The faults of a list: `old` stands exactly once in `file`, or the entry is out of date."""
    slips, stale = [], []
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
        if only not in entry["file"] and only not in entry["note"]:
            continue
        source, old = (ROOT / entry["file"]).read_bytes(), entry["old"].encode()
        if source.count(old) != 1:
            stale.append(f"{entry['file']} holds {entry['old']!r} {source.count(old)} times")
            continue
        start = source.index(old)
        line = source.count(b"\n", 0, start) + 1
        new = entry.get("new", "")
        slips.append(Slip(entry["file"], line, start, start + len(old), new, entry["note"], entry["old"]))
    if stale:
        raise SystemExit("\n".join([*stale, f"{path.name} is out of date; mend these entries"]))
    return slips


def trial(slip: Slip, enough: float) -> tuple[str, str]:
    """`seen`, `hung` (the time ran out), `missed` or `untested`, and the test that saw it."""
    changed = slip.plant((ROOT / slip.path).read_bytes())
    try:
        ast.parse(changed)
    except SyntaxError:
        return "seen", "(no Python)"
    nodes, seconds = tests_for(slip, enough)
    if not nodes:
        return "untested", ""
    with tempfile.NamedTemporaryFile(suffix=".py") as file:
        file.write(changed)
        file.flush()
        code, said = forked(lambda: run_tests(nodes, {str(ROOT / slip.path): file.name}), 3 * seconds + 90)
    lines = [line for line in said.splitlines() if line.strip()]
    if code is None:
        return "hung", ""
    if code == 5:
        return "untested", ""
    at = next((line for line in lines if "Error" in line or line.startswith("E ")), lines[-1] if lines else "")
    return ("missed", f"by {len(nodes)} tests") if code == 0 else ("seen", f"[{at.strip()[-100:]}]")


def tests_for(slip: Slip, enough: float) -> tuple[list[str], float]:
    """The tests to run, those beside the module first and the short ones before the long, and their seconds."""
    known = json.loads(MAP.read_text()) if MAP.exists() else {}
    spot = function_of(slip)
    hits = {node for node, entry in known.items() if _enters(entry["reached"], slip.path, spot)}
    if spot is None:  # a constant is read without a function of its module being entered
        near = {node.partition("::")[0] for node in hits}
        hits |= {node for node in known if node.partition("::")[0] in near and node.startswith(_beside(slip.path))}
    beside = _beside(slip.path)
    files = {file: 0.0 for file in test_files([beside])} if (ROOT / beside).exists() else {}
    groups: dict[str, list[str]] = {} if hits else {file: [file] for file in files}
    for node in known:
        file = node.partition("::")[0]
        if node in hits and (ROOT / file).exists():
            groups.setdefault(file, []).append(node)
            files[file] = files.get(file, 0.0) + known[node]["seconds"]
    nodes, seconds = [], 0.0
    for file in sorted(groups, key=lambda file: (not file.startswith(beside), files.get(file, 0.0))):
        for node in sorted(groups[file], key=lambda node: _seconds(known, node)):
            spent = _seconds(known, node)
            if seconds + spent <= enough or not nodes:
                nodes, seconds = [*nodes, node], seconds + spent
    return nodes, seconds


def _seconds(known: dict[str, dict[str, Any]], node: str) -> float:
    """Of a test as measured; a file that is not mapped is taken for half a minute."""
    return known[node]["seconds"] if node in known else 30.0


def _beside(path: str) -> str:
    """Where the tests of a module lie: `tests/plan`, or `tests/test_config.py` for `s1jax/config.py`."""
    first, second, *_ = pathlib.Path(path).parts
    if first == "curation":
        return "tests/curation"
    if second == "__main__.py":
        return "tests/test_cli.py"
    return f"tests/test_{second}" if second.endswith(".py") else f"tests/{second}"


def function_of(slip: Slip) -> str | None:
    """`path:line` of the innermost function around the slip, as the map names it; None at the module's top."""
    best = None
    for node in ast.walk(ast.parse((ROOT / slip.path).read_bytes())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if node.lineno <= slip.line <= (node.end_lineno or 0) and (best is None or node.lineno > best):
                best = node.lineno
    return None if best is None else f"{slip.path}:{best}"


def _enters(reached: list[str], path: str, spot: str | None) -> bool:
    return spot in reached if spot else any(name.startswith(path + ":") for name in reached)


def count(results: list[tuple[Slip, str]]) -> str:
    """A table: package, slips, those seen."""
    table: dict[str, list[int]] = {}
    for slip, verdict in results:
        parts = pathlib.Path(slip.path).parts
        row = table.setdefault(parts[0] if parts[0] == "curation" else "/".join(parts[:2]), [0, 0])
        row[0] += 1
        row[1] += verdict in ("seen", "hung")
    lines = ["| package | slips | seen |", "|---|---|---|"]
    lines += [f"| {name} | {total} | {seen} |" for name, (total, seen) in sorted(table.items())]
    total, seen = (sum(row[i] for row in table.values()) for i in (0, 1))
    return "\n".join([*lines, f"| all | {total} | {seen} |"])


def record(options: argparse.Namespace, results: list[tuple[Slip, str]], summary: str) -> None:
    """What ran, the counts, and each slip that passed, under a heading of its kind; the words on these are kept."""
    log = subprocess.run(["git", "log", "-1", "--format=%h of %cs"], capture_output=True, text=True, cwd=ROOT)
    before = options.record.read_text(encoding="utf-8") if options.record.exists() else ""
    notes = [line[3:].split("`: ", 1) for line in before.splitlines() if line.startswith("- `") and "`: " in line]
    words = dict(notes)
    kind = "--survivors" if options.survivors else f"{' '.join(options.packages)} --count {options.count}"
    seed = "" if options.survivors else f" --seed {options.seed}"
    lines = [f"Commit {log.stdout.strip()}: `python tools/mutate.py {kind}{seed}`", "", summary]
    missed = [str(slip) for slip, verdict in results if verdict not in ("seen", "hung")]
    lines += ["", "Not seen:", "", *(f"- `{name}`: {words.get(name, 'open')}" for name in missed)] if missed else []
    parts = {part.partition("\n")[0]: part for part in before.split("\n## ")[1:]}
    title = "Faults that passed once" if options.survivors else "A sample"
    parts[title] = "\n".join([title, "", *lines])
    text = "\n\n## ".join([HEAD, *(part.strip() for part in parts.values())])
    options.record.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
