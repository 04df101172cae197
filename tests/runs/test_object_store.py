"""`gs://` for every verb, against a server on loopback; a kill in mid-save included."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from object_store_cases import BUCKET, missing, serving
from train_run_cases import EXACT, make_world, metrics, run_config, start, wait_until

from s1jax.checkpoint import hf
from s1jax.models.decoder import named
from s1jax.train.run import run

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
RUN = f"gs://{BUCKET}/runs"


@pytest.fixture(scope="module")
def store():
    with serving() as found:
        yield found


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def s1jax(store, tmp_path, *arguments):
    """A verb as the user starts it: exit code and what it said."""
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "s1jax", *arguments],
        env={**os.environ, **store.environment, **cache},
        capture_output=True,
        text=True,
        timeout=500,
    )
    return done.returncode, done.stderr


def fetched(store, prefix, folder):
    """The objects below a name, as files."""
    for name in store.names(f"{prefix}/"):
        path = folder / name[len(prefix) + 1 :]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.read(name))
    return folder


@pytest.fixture(scope="module")
def trained(store, world):
    """A run that was killed in the middle of a save and started again; its config."""
    config = dataclasses.replace(run_config(world), out=f"{RUN}/train")
    process = start(config, world, store.environment)

    def is_saving():
        names = store.names("runs/train/checkpoints/00000014/")
        return names and not any(name.endswith("manifest.json") for name in names)

    assert wait_until(process, is_saving)
    process.kill()
    process.communicate()
    assert is_saving(), "the save was whole"
    again = start(config, world, store.environment)
    said = again.communicate(timeout=500)[1]
    assert again.returncode == 0, said
    assert "the save of step 14 was not finished; it is removed" in said
    assert "going on from the checkpoint of step 7" in said
    return config


@pytest.mark.timeout(1800)
def test_a_run_killed_in_a_save_goes_on_bit_by_bit(store, world, trained, tmp_path):
    local = run_config(world)
    run(local)
    ours = [tuple(row[key] for key in EXACT) for row in store.lines("runs/train/metrics.jsonl")]
    assert ours == metrics(local.out)
    model = named(hf.load(fetched(store, "runs/train/hf", tmp_path / "hf")))
    for name, x in named(hf.load(run_config(world).out + "/hf")).items():
        np.testing.assert_array_equal(np.asarray(x), np.asarray(model[name]), err_msg=name)
    steps = {name.split("/")[3] for name in store.names("runs/train/checkpoints/")}
    assert {"00000021", "00000024"} <= steps and "runs/train/.lock" not in store.names("runs/train/.lock")


@pytest.mark.timeout(1800)
def test_every_verb_reads_and_writes_there(store, world, trained, tmp_path):
    questions = [{"id": f"q{n}", "question": f"1 + {n}", "answer": str(1 + n)} for n in range(3)]
    rows = "".join(json.dumps(row) + "\n" for row in questions).encode()
    store.write("rows.jsonl", rows)
    model = f"model={RUN}/train/hf"
    short = ("control.kind=free", "sampling.max_new_tokens=4", "engine.max_length=128", "dtype=float32")
    generate = ("generate", model, f"prompts=gs://{BUCKET}/rows.jsonl", f"out={RUN}/generate", *short)
    for _ in range(2):  # and the second start finds all of it there
        code, said = s1jax(store, tmp_path, *generate)
        assert code == 0, said
        ids = [row["id"] for row in store.lines("runs/generate/completions.jsonl")]
        assert sorted(ids) == sorted(json.loads(row)["id"] for row in rows.splitlines())
    evaluate = ("eval", model, f"benchmark=gs://{BUCKET}/rows.jsonl", f"out={RUN}/eval", *short)
    code, said = s1jax(store, tmp_path, *evaluate)
    assert code == 0, said
    assert len(store.lines("runs/eval/samples.jsonl")) == len(rows.splitlines())
    code, said = s1jax(store, tmp_path, "convert", f"source={RUN}/train/hf", f"target={RUN}/orbax")
    assert code == 0, said
    code, said = s1jax(store, tmp_path, "convert", f"source={RUN}/orbax", f"target={tmp_path / 'back'}", "to=hf")
    assert code == 0, said
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == store.read("runs/train/hf/model.safetensors")
    completions = f"completions={RUN}/generate/completions.jsonl"
    code, said = s1jax(store, tmp_path, "grade", completions, f"benchmark=gs://{BUCKET}/rows.jsonl", f"out={RUN}/grade")
    assert code == 0, said
    assert len(store.lines("runs/grade/samples.jsonl")) == len(rows.splitlines())


def test_other_stores_are_refused_at_once(store, world, tmp_path):
    for scheme in ("s3", "az", "hdfs"):
        code, said = s1jax(store, tmp_path, "generate", "model=m", "prompt=x", f"out={scheme}://bucket/run")
        assert code == 2 and f"{scheme}://bucket/run: paths are local or gs://, {scheme}:// is neither" in said, said
        assert not (tmp_path / f"{scheme}:").exists()
