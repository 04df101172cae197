"""The whole road in small: every room, one after the other, through the command that a user types."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from s1jax.records import Sample, read_jsonl, to_completion

SMALL = ["steps=40", "pool=300", "held_out=12"]


def command(out, *extra: str) -> list[str]:
    """The quickstart in an interpreter that has no torch: it must not be needed."""
    code = "import sys; sys.modules['torch'] = None; from s1jax.__main__ import main; sys.exit(main())"
    return [sys.executable, "-c", code, "quickstart", f"out={out}", *SMALL, *extra]


@pytest.fixture(scope="module")
def environment():
    return {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}


@pytest.fixture(scope="module")
def out(tmp_path_factory, environment):
    """A run that was killed in training and then started again."""
    out = tmp_path_factory.mktemp("quickstart") / "run"
    process = subprocess.Popen(command(out), env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    metrics = out / "train" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = subprocess.run(command(out), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Control" in done.stdout and "Scaling" in done.stdout and "Performance" in done.stdout
    return out


def samples_of(out) -> dict[str, list[Sample]]:
    return {
        path.parent.name: [to_completion(row, Sample) for row in read_jsonl(path)]
        for path in sorted(out.glob("eval/*/samples.jsonl"))
    }


def test_every_room_left_its_files(out):
    for name in ("curate/rows.jsonl", "curate/receipt.json", "train/metrics.jsonl", "train/hf/model.safetensors"):
        assert (out / name).is_file(), name
    for name in ("hf/config.json", "report/scaling.json", "report/scaling.png", "report/index.html", "seconds.json"):
        assert (out / name).is_file(), name
    assert [row["step"] for row in read_jsonl(out / "train" / "metrics.jsonl")] == list(range(1, 41))


def test_training_and_held_out_questions_are_disjoint(out):
    trained = {"".join(row["question"].lower().split()) for row in read_jsonl(out / "curate" / "rows.jsonl")}
    held_out = {"".join(row["question"].lower().split()) for row in read_jsonl(out / "held_out.jsonl")}
    assert len(held_out) == 12 and not trained & held_out
    receipt = json.loads((out / "curate" / "receipt.json").read_text())
    assert receipt["kept"] + receipt["dropped"] == receipt["pool"] == 300
    assert any(drop["stage"] == "decontaminate" for drop in receipt["drops"])


def test_model_is_the_same_after_its_way_through_orbax(out):
    before, after = load_file(out / "train" / "hf" / "model.safetensors"), load_file(out / "hf" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_every_sample_keeps_its_budget(out):
    found = samples_of(out)
    budgets = {int(name.removeprefix("budget-")): rows for name, rows in found.items() if name.startswith("budget-")}
    assert len(budgets) >= 6 and min(budgets) <= 1
    assert {name for name in found if name.startswith("ignore-")} == {f"ignore-{n}" for n in (0, 1, 2, 4)}
    for budget, rows in budgets.items():
        assert len(rows) == 12
        assert all(row.thinking_tokens <= budget and len(row.forced) == len(row.token_ids) for row in rows)
    assert len(found["vote"]) == 12 * 8


def test_report_is_made_of_the_samples(out):
    scaling = json.loads((out / "report" / "scaling.json").read_text())
    assert scaling["control"]["value"] == 1.0
    found = samples_of(out)
    by_accuracy = sorted(np.mean([row.correct for row in rows]) for name, rows in found.items() if name != "vote")
    np.testing.assert_allclose(sorted(point["accuracy"] for point in scaling["points"]), by_accuracy)
    assert scaling["performance"]["value"] == pytest.approx(max(by_accuracy))
    page = (out / "report" / "index.html").read_text()
    assert "<mark" in page and "http://" not in page.replace("http://www.w3.org", "")


def test_second_start_does_nothing_twice(out, environment):
    files = [out / "train" / "metrics.jsonl", *sorted(out.glob("eval/*/samples.jsonl"))]
    before = [path.read_bytes() for path in files]
    assert subprocess.run(command(out), env=environment, capture_output=True).returncode == 0
    assert [path.read_bytes() for path in files] == before
    refused = subprocess.run(command(out, "seed=3"), env=environment, capture_output=True, text=True)
    assert refused.returncode == 2 and "seed was 0, is 3" in refused.stderr
