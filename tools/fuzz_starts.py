"""Starts of every verb from damaged command lines, recipes and files: each must begin its work or be refused in a line.

    python tools/fuzz_starts.py count=1000 seed=0 [write=docs/fuzz_starts.md]

A start is a valid one in which one to three things were changed: a key (another type, out of range, missing, huge,
nested, control characters, the name of another verb), a recipe, or a file that the verb reads (cut off, bytes flipped,
a JSON value replaced, gone, a folder in its place). All run in this process, each in a fresh copy of a small world,
up to where the work would begin. What must hold: no traceback; an exit code of 0 or 2 within ten seconds; one line for
2, which names something; and a refused start leaves every file as it was.
"""

import collections
import contextlib
import dataclasses
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax

from s1jax import __main__ as cli

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from damaged_starts import STARTS, Start, draw_start, make_world, plain, quiet  # noqa: E402  (a tool, not a package)

SECONDS = 10


class WorkBegins(BaseException):
    """Everything was checked."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """What went wrong."""

    start: Start
    what: str


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """Where the work of a verb would begin, `WorkBegins` is raised; curate, grade and report work in earnest."""

    def begin(*_: object, **__: object) -> None:
        raise WorkBegins

    places = (
        "s1jax.train.run._state",
        "s1jax.methods.session.Session._prepare",
        "s1jax.checkpoint.convert._write",
        "s1jax.plan.run.make_plan",
        "s1jax.plan.run.plan_decode",
        "s1jax.quickstart.run.task",
    )
    with contextlib.ExitStack() as stack:
        for place in places:
            owner, _, name = place.rpartition(".")
            value = mock.MagicMock(side_effect=begin) if name != "task" else _Raises()
            stack.enter_context(mock.patch(f"{owner}.{name}", value))
        yield


class _Raises:
    def __getattr__(self, name: str) -> Any:
        raise WorkBegins


def state_of(folder: pathlib.Path) -> dict[str, tuple[Any, ...]]:
    """Every file below a folder with its size, time and inode."""
    found = {}
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        found[str(path.relative_to(folder))] = (stat.st_size if path.is_file() else None, stat.st_mtime_ns, stat.st_ino)
    return {name: what if what[0] is not None else None for name, what in found.items()}  # type: ignore[misc]


def run_one(start: Start, template: pathlib.Path, world: pathlib.Path) -> tuple[str, str | None]:
    """How a start ended, and what was wrong about it (None: nothing)."""
    shutil.copytree(template, world, symlinks=True)
    for name, damage in start.damages:
        if (world / name).is_file():
            damage(world / name)
    for recipe in world.glob("*.yaml"):
        with contextlib.suppress(UnicodeDecodeError, IsADirectoryError):
            recipe.write_text(recipe.read_text().replace(str(template), str(world)))
    arguments = [argument.replace("{w}", str(world)) for argument in start.arguments]
    before, here, environment = state_of(world), pathlib.Path.cwd(), dict(os.environ)
    os.chdir(world)
    begun = time.monotonic()
    try:
        with quiet() as errors, stopping():
            signal.alarm(SECONDS)
            try:
                code: Any = cli.main(list(arguments))
            except WorkBegins:
                code = 0
            except SystemExit as left:
                return "left", f"SystemExit({left.code})"
            finally:
                signal.alarm(0)
    except TimeoutError:
        return "hung", f"took more than {SECONDS} s"
    except BaseException as error:
        return "traceback", f"{type(error).__name__}: {error}"
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(environment)
    said = errors.getvalue()
    if time.monotonic() - begun > SECONDS:
        return "hung", f"took {time.monotonic() - begun:.1f} s"
    if "Traceback" in said or code not in (0, 2):
        return "traceback", said[-2000:]
    if code == 2:
        lines = [line for line in said.splitlines() if line.startswith("s1jax: ")]
        if len(lines) != 1 or said.splitlines()[-1] != lines[0] or len(lines[0]) > 3000:
            return "refused", f"not one line: {said[-2000:]}"
        if "no row is left; " in said:
            return "refused", None  # curate did its work, and its receipt tells what became of every row
        after = state_of(world)
        if differing := [name for name in {**before, **after} if before.get(name) != after.get(name)]:
            return "refused", f"changed {differing[:5]}; {lines[0]}"
    return ("refused" if code == 2 else "began"), None


def run(
    count: int, seed: int, say: Callable[[str], None] = lambda line: None
) -> tuple[collections.Counter, list[Fault]]:
    """So many starts; how they ended by verb, and the faults."""
    draw, ends, faults = random.Random(seed), collections.Counter(), []

    def late(number: int, frame: object) -> None:
        raise TimeoutError

    handler = signal.signal(signal.SIGALRM, late)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            template = pathlib.Path(scratch) / "template"
            template.mkdir()
            make_world(template)
            _refuse_broken(template)
            for number in range(count):
                start = draw_start(draw)
                end, wrong = run_one(start, template, pathlib.Path(scratch) / "world")
                shutil.rmtree(pathlib.Path(scratch) / "world")
                ends[start.arguments[0], end] += 1
                if wrong is not None:
                    faults.append(Fault(start, f"{end}: {wrong}"))
                    arguments = [argument[:120] for argument in start.arguments]
                    say(f"{number}: {start.told}\n    {arguments}\n    {wrong[-1500:]}")
    finally:
        signal.signal(signal.SIGALRM, handler)
    return ends, faults


def _refuse_broken(template: pathlib.Path) -> None:
    """Every start without damage begins."""
    for verb in STARTS:
        start = Start((verb, *plain(verb, "{w}/new")), (), verb)
        ended = run_one(start, template, template.with_name("world"))
        assert ended == ("began", None), f"{verb} without damage: {ended}"
        shutil.rmtree(template.with_name("world"))


def report(ends: collections.Counter, faults: list[Fault], count: int, seed: int, seconds: float) -> str:
    """The record, as Markdown."""
    verbs = list(STARTS)
    lines = [
        "# Damaged starts",
        "",
        f"`python tools/fuzz_starts.py count={count} seed={seed} write=docs/fuzz_starts.md`: {count} starts, "
        f"{len(faults)} faults (tracebacks, hangs over {SECONDS} s, more than a line, files changed by a refused "
        f"start), {seconds:.0f} s on {os.cpu_count()} cores, JAX {jax.__version__}.",
        "",
        "| verb | refused | began |",
        "|---|---|---|",
        *(f"| {verb} | {ends[verb, 'refused']} | {ends[verb, 'began']} |" for verb in verbs),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    given = dict(argument.split("=", 1) for argument in arguments)
    count, seed = int(given.get("count", 1000)), int(given.get("seed", 0))
    begun = time.monotonic()
    ends, faults = run(count, seed, print)
    text = report(ends, faults, count, seed, time.monotonic() - begun)
    print(text)
    if "write" in given:
        pathlib.Path(given["write"]).write_text(text)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
