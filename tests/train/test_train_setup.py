"""What a run refuses before its first step, what it says while it works, and how it is launched on several hosts."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import types

import pytest
import yaml
from train_run_cases import SIZES, make_world, run_config

from s1jax.__main__ import load_config
from s1jax.config import BadInput
from s1jax.parallel import hosts
from s1jax.parallel.hosts import EXPLICIT, launcher
from s1jax.parallel.mesh import slice_sizes
from s1jax.train import run as train_run
from s1jax.train.data import DataConfig
from s1jax.train.log import LogConfig, check, line, open_log
from s1jax.train.optimizer import OptimizerConfig
from s1jax.train.plan import steps_per_epoch
from s1jax.train.run import RandomModel, SaveConfig, run


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def config(world):
    return run_config(world)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": ""}, "random weights has no tokenizer; set tokenizer=DIR"),
        ({"chat_template": "/nowhere.jinja"}, "chat_template=/nowhere.jinja does not exist"),
        ({"remat": "some"}, "remat='some' is not known; use one of none, dots"),
        ({"global_batch": 0}, "global_batch=0; it must be at least 1"),
        ({"steps": 0}, "steps=0; it must be at least 1"),
        ({"model": RandomModel(dataclasses.replace(SIZES, V=100))}, "the model has 100 tokens, its tokenizer 28"),
        ({"model": RandomModel(dataclasses.replace(SIZES, family="gpt"))}, "model.init.family='gpt' is not known"),
        ({"model": RandomModel(dataclasses.replace(SIZES, max_position=20))}, "the model is made for 20 positions"),
        ({"data": DataConfig(rows="x", preset="s2")}, "data.preset='s2' is not known; use one of s1"),
        ({"save": SaveConfig(every=0)}, "save.every=0; it must be at least 1"),
        ({"log": LogConfig(every=0)}, "log.every=0; it must be at least 1"),
        ({"log": LogConfig(wandb="mine")}, "log.wandb='mine', but wandb is not installed"),
        ({"eval_rows": (), "save": SaveConfig(export="best")}, "save.export=best needs eval_rows"),
    ],
)
def test_what_is_refused(change, message, config, world, monkeypatch):
    with pytest.raises(BadInput, match=message):
        run(dataclasses.replace(config, out=str(world / "refused"), **change))


def test_the_progress_line():
    record = {"step": 12, "loss": 1.23456, "tokens_per_second": 8123.4, "mfu": 0.431, "seconds_left": 200.4}
    assert line(record, 315) == "step 12/315  loss 1.2346  8,123 tokens/s  MFU 43.1%  3:20 left"
    assert line({"step": 1, "loss": 2.0, "mfu": None}, 3) == "step 1/3  loss 2.0000"


def test_tensorboard_holds_the_metrics_again(tmp_path):
    from tensorboardX.proto import event_pb2

    log = open_log(LogConfig(), tmp_path, step=0, steps=2, progress=lambda record: None, quiet=False)
    for step in (1, 2):
        log.write({"step": step, "loss": 2.5 / step, "mfu": None}, seconds_left=0.0)
    log.close()
    data = next((tmp_path / "tensorboard").iterdir()).read_bytes()
    values, at = [], 0
    while at < len(data):  # length, its checksum, the event, its checksum
        size = int.from_bytes(data[at : at + 8], "little")
        event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
        values += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        at += 16 + size
    assert values == [(1, "loss", 2.5), (2, "loss", 1.25)]
    assert [json.loads(row)["step"] for row in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_wandb_gets_every_step_of_a_run_that_goes_on(tmp_path, monkeypatch):
    """A module in its place: what would be sent, and that both starts are one run there."""
    calls = []

    class Run:
        def log(self, record, step):
            calls.append((step, record["loss"]))

        def finish(self):
            calls.append("finished")

    def init(**options):
        calls.append((options["project"], options["id"], options["resume"]))
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, __spec__=object()))
    config = LogConfig(tensorboard=False, wandb="mine")
    check(config)
    for first in (1, 3):
        log = open_log(config, tmp_path, step=first - 1, steps=4, progress=lambda record: None, quiet=False)
        for step in (first, first + 1):
            log.write({"step": step, "loss": 1.0 / step}, seconds_left=0.0)
        log.close()
    begun = calls[0]
    assert begun[0] == "mine" and begun[2] == "allow"
    assert calls == [begun, (1, 1.0), (2, 0.5), "finished", begun, (3, 1 / 3), (4, 0.25), "finished"]
    other = tmp_path / "other" / tmp_path.name
    other.mkdir(parents=True)
    open_log(config, other, step=0, steps=1, progress=lambda record: None, quiet=False).close()
    assert calls[-2][1] != begun[1]  # a folder of the same name elsewhere is another run
    open_log(config, tmp_path, step=0, steps=1, progress=None, quiet=True).close()
    assert calls[-1] == "finished" and len(calls) == 10  # other hosts say nothing


# ---- several hosts

SLURM = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"}
K8S = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}


@pytest.mark.parametrize(
    ("environment", "is_tpu_vm", "expected"),
    [
        ({}, False, None),
        ({}, True, "gcetpu"),
        ({"TPU_SKIP_MDS_QUERY": "1"}, True, None),
        (SLURM, False, "slurm"),
        ({**SLURM, "SLURM_NTASKS": "1"}, False, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, False, None),  # inside an allocation, not started by srun
        (K8S, False, "k8s"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False, None),  # any pod
        ({**dict.fromkeys(EXPLICIT, "1"), **SLURM}, True, "explicit"),
    ],
)
def test_who_launched(environment, is_tpu_vm, expected):
    assert launcher(environment, is_tpu_vm=is_tpu_vm) == expected


def test_what_a_launcher_must_say(monkeypatch):
    with pytest.raises(BadInput, match="JAX_PROCESS_ID is set, JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES is not"):
        launcher({"JAX_PROCESS_ID": "0"}, is_tpu_vm=False)
    with pytest.raises(BadInput, match="SLURM_NTASKS='two' is not a number"):
        launcher({**SLURM, "SLURM_NTASKS": "two"}, is_tpu_vm=False)
    for name, value in K8S.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="needs the package `kubernetes` .*, or set JAX_COORDINATOR_ADDRESS"):
        hosts.start()


@pytest.mark.parametrize(
    ("sizes", "slices", "expected"),
    [((4, 8, 1, 1), 4, (4, 1, 1, 1)), ((1, 16, 2, 1), 2, (1, 2, 1, 1)), ((2, 8, 1, 2), 4, (2, 2, 1, 1))],
)
def test_slices_are_spanned_by_data_first(sizes, slices, expected):
    assert slice_sizes(sizes, slices) == expected


def test_slices_that_cannot_be_spanned():
    with pytest.raises(BadInput, match="data=1 x fsdp=2 cannot be laid over 4 slices; use sizes .* multiple of 4"):
        slice_sizes((1, 2, 4, 1), 4)


def test_launch_examples_are_what_their_launchers_read():
    folder = pathlib.Path(__file__).parent.parent.parent / "tools" / "launch"
    for script in ("slurm.sh", "tpu_vm.sh"):
        subprocess.run(["bash", "-n", str(folder / script)], check=True)
    assert "--ntasks-per-node=8" in (folder / "slurm.sh").read_text()  # JAX takes one GPU a task under SLURM
    service, job = yaml.safe_load_all((folder / "kubernetes.yaml").read_text())
    template = job["spec"]["template"]["spec"]
    given = {entry["name"]: entry.get("value") for entry in template["containers"][0]["env"]}
    assert set(EXPLICIT) <= set(given) and given["JAX_NUM_PROCESSES"] == str(job["spec"]["completions"])
    name = job["metadata"]["name"]
    assert given["JAX_COORDINATOR_ADDRESS"].startswith(f"{name}-0.{template['subdomain']}:")
    assert service["metadata"]["name"] == template["subdomain"] and service["spec"]["selector"] == {"job-name": name}


@pytest.mark.parametrize(("name", "rows", "block"), [("s1_32b", "s1K", 32768), ("s1_1_32b", "s1K-1.1", 20000)])
def test_the_papers_recipes(name, rows, block):
    """Every setting of simplescaling/s1@77272c6 train/sft.sh, and the libraries' defaults beneath it."""
    folder = pathlib.Path(__file__).parent.parent.parent / "configs"
    recipe = load_config("train", str(folder / f"{name}.yaml"), [])
    assert (recipe.model, recipe.data.rows) == ("Qwen/Qwen2.5-32B-Instruct", f"simplescaling/{rows}")
    assert (recipe.data.block, recipe.epochs, recipe.steps, recipe.global_batch) == (block, 5, None, 16)
    assert recipe.optimizer == OptimizerConfig(1e-5, 0.05, None, 0.0, 0.9, 0.95, 1e-8, 1e-4, 1.0, "float32", "float32")
    assert (recipe.loss.norm, recipe.dtype, recipe.lora, recipe.seed) == ("example", "bfloat16", None, 42)
    assert recipe.epochs * steps_per_epoch(1000, recipe.global_batch) == 315


def test_all_processes_export_or_none(tmp_path, monkeypatch):
    """Another host has no copy of a folder in an object store; it would wait in the export for the first one."""
    for is_there in (True, False):
        monkeypatch.setattr(train_run.hosts, "of_first", lambda make, said=is_there: said)
        assert train_run._is_exported(tmp_path / "nowhere") == is_there
