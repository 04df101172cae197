"""The plugin that holds names to shapes: what it reports, and what it leaves alone."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import shape_exempt
from shape_plugin import HOOK, Exempt, Looker, Shapes, alphabet, compile_with_looks

from s1jax.parallel import axes

LETTERS = "BTDKXW"


@dataclasses.dataclass(frozen=True)
class State:
    """Two arrays of rows."""

    count_B: np.ndarray
    trail_BW: np.ndarray


def reported(source: str, *calls: str, exempt: tuple[Exempt, ...] = (), looks: int = 100) -> list[str]:
    """What is said of calls of functions in `source`, a module `m`."""
    shapes = Shapes(LETTERS, exempt)
    names = {"np": np, "State": State, HOOK: Looker(shapes, looks)}
    exec(compile_with_looks(source, "m"), names)
    for call in calls:
        eval(call, names)
    return list(shapes.wrong.values())


def zeros(*shape: int) -> str:
    return f"np.zeros({shape})"


def test_a_wrong_rank_is_reported_of_arguments_locals_and_what_is_returned():
    source = "def f(x_BTD):\n    y_BT = x_BTD\n    return y_BT"
    assert reported(source, f"f({zeros(2, 3, 4)})") == ["m.f: y_BT: rank 3, shape (2, 3, 4)"]
    assert reported(source, f"f({zeros(2, 3)})") == ["m.f: x_BTD: rank 2, shape (2, 3)"]
    assert reported("def f(x_B): pass", f"f({zeros()})") == ["m.f: x_B: rank 0, shape ()"]


def test_equal_letters_have_equal_sizes_in_a_call():
    source = "def f(x_BT, y_TD):\n    return x_BT @ y_TD"
    assert reported(source, f"f({zeros(2, 3)}, {zeros(3, 4)})", f"f({zeros(2, 5)}, {zeros(5, 4)})") == []
    source = "def f(x_BT, y_BD):\n    if True:\n        return x_BT"
    assert reported(source, f"f({zeros(2, 3)}, {zeros(4, 3)})") == ["m.f: y_BD: B is 4 here and 2 in x_BT"]
    source = "def f(x_BT):\n    T = 5\n    return T"
    assert reported(source, f"f({zeros(2, 3)})") == ["m.f: x_BT: T is 3 here and 5 in T"]


def test_fields_of_dataclasses_are_looked_at():
    source = "def f(state, x_B):\n    return x_B"
    call = f"f(State({zeros(2)}, {zeros(3, 4)}), {zeros(2)})"
    assert reported(source, call) == ["m.f: State.trail_BW: B is 3 here and 2 in State.count_B"]
    one = f"f(State({zeros()}, {zeros(4)}), {zeros(2)})"
    of_a_row = (Exempt("m", ("State",), "a row", without="B"),)
    assert reported(source, one, exempt=of_a_row) == []
    bad = f"f(State({zeros()}, {zeros()}), {zeros(2)})"
    assert reported(source, bad, exempt=of_a_row) == ["m.f: State.trail_BW: rank 0, shape ()"]


def test_a_letter_of_no_alphabet_is_reported():
    assert reported("def f(x_BZ): pass", f"f({zeros(1, 1)})") == ["m.f: x_BZ: the letter Z stands in no alphabet"]


def test_functions_inside_functions_and_classes_are_looked_at_for_themselves():
    source = (
        "def f(x_BT):\n    def g(y_B):\n        return x_BT\n    return g(x_BT[:, 0]), g(x_BT)\n"
        "class A:\n    def h(self, z_B):\n        z = [z_B for z_B in (1, 2)]\n"
    )
    said = reported(source, f"f({zeros(2, 3)})", f"A().h({zeros(1, 2)})")
    assert said == ["m.f.g: y_B: rank 2, shape (2, 3)", "m.A.h: z_B: rank 2, shape (1, 2)"]


def test_what_is_no_array_and_what_raises_is_left_alone():
    source = "def f(x_B, y_BT=None, lora_A=''):\n    MAX_B = np.zeros((1, 1))\n    return [x_BT for x_BT in x_B]"
    assert reported(source, "f([1, 2])", "f('')") == []
    source = "def f(x_B):\n    raise KeyError"
    with pytest.raises(KeyError):
        reported(source, f"f({zeros(2, 2)})")


def test_a_function_is_looked_at_a_bounded_number_of_times():
    source = "def f(x_B):\n    return x_B"
    calls = [f"f({zeros(2)})"] * 3 + [f"f({zeros(2, 2)})"]
    assert reported(source, *calls, looks=4) and not reported(source, *calls, looks=3)


def test_code_computes_as_without_looks():
    source = (
        "def f(n, x_B=(1, 2)):\n    '''Said.'''\n    for i in range(n):\n        if i == 3:\n            return i\n"
        "    else:\n        yield_B = n\n    return yield_B * 2\n"
        "def g(n_B):\n    while n_B:\n        n_B -= 1\n        yield n_B\n"
    )
    plain: dict = {}
    exec(source, plain)
    looked = {HOOK: Looker(Shapes(LETTERS))}
    exec(compile_with_looks(source, "m"), looked)
    for names in (plain, looked):
        assert [names["f"](n) for n in (0, 2, 5)] == [0, 4, 3] and list(names["g"](3)) == [2, 1, 0]
    assert looked["f"].__doc__ == "Said." and looked["g"].__code__.co_firstlineno == plain["g"].__code__.co_firstlineno


def test_exemptions_name_what_exists():
    """A function or name that went must go from the list too."""
    for exempt in shape_exempt.EXEMPT:
        parts = exempt.where.split(".")
        found = importlib.import_module(".".join(parts[:2]))
        for part in parts[2:]:
            inside = importlib.util.find_spec(f"{found.__name__}.{part}") if hasattr(found, "__path__") else None
            found = importlib.import_module(inside.name) if inside else getattr(found, part)
        room = pathlib.Path(axes.__file__).parent.parent  # an engine holds what a control defines
        text = "".join(path.read_text() for path in room.rglob("*.py"))
        for name in exempt.names:
            assert re.search(rf"\b{name.rpartition('.')[2]}\b", text), f"{exempt.where} knows no {name}"


def test_the_alphabet_is_that_of_the_project():
    assert alphabet(pathlib.Path(axes.__file__)) == axes.ALPHABET
    assert all(len(letter) == 1 and letter.isupper() for letter in axes.ALPHABET)


INSTALL = """import shape_plugin
shapes = shape_plugin.Shapes({alphabet!r})
shape_plugin.install({package!r}, shapes)
def pytest_configure(config):
    config.pluginmanager.register(shape_plugin.Plugin(shapes))
"""


def run_pytest(folder: pathlib.Path, *plugins: str, **variables: str) -> str:
    """What pytest says of the tests in a folder, in a process of its own."""
    here = pathlib.Path(__file__).parent
    paths = [str(here), str(here.parent), str(here.parent / "tools")]
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short", str(folder)]
    code = f"import sys; sys.path[:0] = {paths!r}; {'; '.join(f'import {name}' for name in ('pytest', *plugins))}; "
    code += f"sys.exit(pytest.main({options!r}, plugins=[{', '.join(f'{name}.First()' for name in plugins)}]))"
    environment = {**os.environ, **variables}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=environment)
    return done.stdout + done.stderr


def make_package(folder, source):
    """The package `known`, at whose calls the tests of the folder look."""
    (folder / "known").mkdir()
    (folder / "known" / "__init__.py").write_text(source)
    (folder / "conftest.py").write_text(INSTALL.format(alphabet="BT", package="known"))


def test_a_test_in_which_a_shape_is_wrong_fails(tmp_path):
    """The plugin in a session of its own: a test and two fixtures that break a name, and tests that do not."""
    make_package(tmp_path, "def first(x_BT):\n    return x_BT[0]\n")
    (tmp_path / "test_it.py").write_text(
        "import numpy as np, pytest, known\n"
        "@pytest.fixture\ndef bad():\n    return known.first(np.zeros(3))\n"
        "@pytest.fixture\ndef bad_in_the_end():\n    yield\n    known.first(np.zeros(4))\n"
        "def test_right():\n    known.first(np.zeros((3, 2)))\n"
        "def test_wrong():\n    known.first(np.zeros((3, 2, 1)))\n"
        "def test_wrong_fixture(bad):\n    pass\n"
        "def test_wrong_end(bad_in_the_end):\n    pass\n"
        "def test_right_again():\n    known.first(np.zeros((3, 2)))\n"
    )
    said = run_pytest(tmp_path)
    assert "1 failed, 3 passed, 2 errors" in said, said
    for shape in ("rank 3, shape (3, 2, 1)", "rank 1, shape (3,)", "rank 1, shape (4,)"):
        assert f"known.first: x_BT: {shape}" in said


def test_what_a_test_raises_is_what_is_said_of_it(tmp_path):
    """Nothing is swallowed, with a wrong shape before it or without; nor does the next test pay for it."""
    make_package(tmp_path, "def first(x_BT):\n    y_B = x_BT\n    return y_B[0]\n")
    (tmp_path / "test_it.py").write_text(
        "import numpy as np, known\n"
        "def test_raises():\n    known.first(None)\n"
        "def test_asserts():\n    assert known.first([5]) == 6\n"
        "def test_asserts_after_a_wrong_shape():\n    assert known.first(np.full((2, 1), 5)) == 7\n"
        "def test_right():\n    assert known.first([5]) == 5\n"
    )
    said = run_pytest(tmp_path)
    assert "3 failed, 1 passed" in said, said
    assert "'NoneType' object is not subscriptable" in said and "assert 5 == 6" in said
    assert re.search(r"E +assert array\(\[5\]\) == 7", said), said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("NO_ID = -1", "NO_ID = -1", "1 passed"),
        ("NO_ID = -1", "NO_ID = -2", "assert -2 == -1"),
        ("jnp.cumsum(self.size_BW, axis=1,", "jnp.cumsum(self.size_BW,", "Trail.pending: reach_BW: rank 1, shape (2,)"),
    ],
)
def test_a_planted_slip_is_seen_and_looked_at(tmp_path, old, new, said):
    """`tools/mutate.py` plants while the plugin is at work: neither may put the source back or stop the other."""
    path = pathlib.Path(axes.__file__).parent.parent / "control" / "trail.py"
    assert path.read_text().count(old) == 1
    (tmp_path / "trail.txt").write_text(path.read_text().replace(old, new))
    (tmp_path / "planted.json").write_text(json.dumps({str(path): str(tmp_path / "trail.txt")}))
    (tmp_path / "conftest.py").write_text(INSTALL.format(alphabet=[*axes.ALPHABET, *"WX"], package="s1jax"))
    (tmp_path / "test_it.py").write_text(
        "import numpy as np\nfrom s1jax.control import trail\n"
        "def test_it():\n    rows = trail.empty_trail(1, 2, 3)\n    rows.pending(np.ones(1, int))\n"
        "    assert int(rows.drawn_BX[0, 0]) == -1\n"
    )
    told = run_pytest(tmp_path, "planted", S1JAX_PLANTED=str(tmp_path / "planted.json"))
    assert said in told, told
