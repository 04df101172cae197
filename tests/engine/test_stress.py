"""The short form of tools/stress_engine.py, whose long run is recorded in docs/engine_stress.md."""

import collections
import importlib.util
import pathlib

TOOL = pathlib.Path(__file__).parent.parent.parent / "tools" / "stress_engine.py"
DONE = ("fork", "extend", "restore", "cancel", "pause", "ended: cancelled", "extend refused")


def test_random_callers_from_four_threads_find_no_fault():
    spec = importlib.util.spec_from_file_location("stress_engine", TOOL)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    counts: collections.Counter[str] = collections.Counter()
    for seed in range(1, 7):  # what is refused depends on how the threads meet: more callers, until all was done
        callers = tool.stress(operations=500, threads=4, seed=seed)
        assert callers.faults == []
        counts.update(callers.counts)
        if all(counts[done] for done in DONE):
            return
    raise AssertionError(f"no {', '.join(done for done in DONE if not counts[done])} among {dict(counts)}")
