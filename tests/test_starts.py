"""Damaged starts of every verb: begun or refused in a line, nothing changed (tools/fuzz_starts.py, its short form)."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tools"))

import fuzz_starts

COUNT, SEED = 150, 7


def test_damaged_starts_are_refused_in_a_line():
    ends, faults = fuzz_starts.run(COUNT, SEED)
    assert not faults, "\n\n".join(f"{fault.start.arguments}\n{fault.what}" for fault in faults)
    assert sum(ends.values()) == COUNT
    assert all(any(ends[verb, end] for end in ("refused", "began")) for verb in fuzz_starts.STARTS)
    assert sum(n for (_, end), n in ends.items() if end == "began") >= COUNT / 20


@pytest.mark.parametrize(
    "fault, what",
    [
        ("raise", "traceback"),
        ("hang", "hung"),
        ("touch", "changed"),
        ("print", "not one line"),
        ("exit", "SystemExit"),
    ],
)
def test_the_tool_sees_what_it_looks_for(monkeypatch, tmp_path, fault, what):
    (tmp_path / "template").mkdir()
    monkeypatch.setattr(fuzz_starts, "SECONDS", 1)

    def broken(arguments):
        if fault == "raise":
            raise KeyError("x")
        if fault == "hang":
            while True:
                pass
        if fault == "touch":
            pathlib.Path("left").write_text("x")
        if fault == "exit":
            sys.exit(2)
        print("s1jax: no" + "\ns1jax: and no" * (fault == "print"), file=sys.stderr)
        return 2

    monkeypatch.setattr(fuzz_starts.cli, "main", broken)
    monkeypatch.setattr(fuzz_starts, "make_world", lambda folder: None)
    monkeypatch.setattr(fuzz_starts, "_refuse_broken", lambda folder: None)
    monkeypatch.setattr(fuzz_starts, "draw_start", lambda draw: fuzz_starts.Start(("x",), (), "x"))
    [found] = fuzz_starts.run(1, 0)[1]
    assert what in found.what
