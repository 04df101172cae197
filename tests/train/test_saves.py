"""Saves of several processes: whole in all of them or in none, however slow or full the disk of one."""

import json
import pathlib

import pytest
from host_cases import ended, workers

from s1jax.checkpoint import saved

WORKER = pathlib.Path(__file__).parent.parent / "save_worker.py"


def steps(root):
    """The checkpoints that are whole, every file of them read."""
    for checkpoint in saved.saved(root):
        saved.verify(checkpoint)
    return [checkpoint.step for checkpoint in saved.saved(root)]


@pytest.mark.parametrize("count", [2, 4])
def test_hashing_longer_than_the_last_barrier_waits_loses_nothing(tmp_path, count):
    codes, out, err = ended(workers(count, WORKER, tmp_path, "slow"))
    assert codes == [0] * count, err
    assert steps(tmp_path) == [1, 2, 3]
    for said in out:  # by the time a process says so, it is
        assert json.loads(said.splitlines()[-1]) == {"saved": [1, 2, 3]}
    manifest = json.loads((tmp_path / "00000003" / "manifest.json").read_text())
    assert {name.split("process_")[1][0] for name in manifest["files"] if "process_" in name} == set("0123"[:count])
    assert not (tmp_path / "00000003" / "parts").exists()


@pytest.mark.parametrize("count", [2, 4])
def test_a_full_disk_of_one_process_stops_all_with_what_was_saved(tmp_path, count):
    codes, out, err = ended(workers(count, WORKER, tmp_path, "full"))
    assert codes == [2] * count, err
    assert steps(tmp_path) == [1] and [path.name for path in tmp_path.iterdir()] == ["00000001"]
    line = "the disk is full: the checkpoint of step 2 could not be written"
    assert line in out[-1], "said where it happened, at once"
    (said,) = [text for text in err[0].splitlines() if "full" in text]
    assert said.startswith(f"s1jax: {line}") and said.endswith("what was saved before is as it was")
    assert "Traceback" not in "".join(err) and not any("saved" in said for said in out)


def test_a_full_disk_costs_one_checkpoint_by_choice(tmp_path):
    codes, out, err = ended(workers(2, WORKER, tmp_path, "goes on"))
    assert codes == [0, 0], err
    assert steps(tmp_path) == [1, 3]
    assert "training goes on without this checkpoint" in out[0]


def test_a_folder_that_is_not_shared_is_refused_in_seconds(tmp_path):
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
    codes, _, err = ended(workers(2, WORKER, tmp_path, "apart"))
    assert codes == [2, 2], err
    assert f"out={tmp_path / '0'} is not the same folder in all processes: process 1 does not see what" in err[0]
    assert list((tmp_path / "0").iterdir()) == list((tmp_path / "1").iterdir()) == [], "nothing was left"
