"""The short form of tools/stress_engine.py, whose long run is recorded in docs/engine_stress.md."""

import importlib.util
import pathlib

TOOL = pathlib.Path(__file__).parent.parent.parent / "tools" / "stress_engine.py"


def test_random_callers_from_four_threads_find_no_fault():
    spec = importlib.util.spec_from_file_location("stress_engine", TOOL)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    callers = tool.stress(operations=500, threads=4, seed=1)
    assert callers.faults == []
    for done in ("fork", "extend", "restore", "cancel", "pause", "ended: cancelled", "extend refused"):
        assert callers.counts[done] > 0, f"no {done} among {dict(callers.counts)}"
