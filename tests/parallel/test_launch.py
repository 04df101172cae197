"""The scripts of `tools/launch`: each is for a launcher that is known, and gives a save the time that it takes."""

import pathlib
import re
import subprocess

import jax
import pytest
import yaml

from s1jax.models.config import DecoderConfig
from s1jax.models.decoder import Decoder
from s1jax.parallel.hosts import launcher
from s1jax.train.loss import LossConfig
from s1jax.train.optimizer import OptimizerConfig
from s1jax.train.step import Recipe, initial_state

FOLDER = pathlib.Path(__file__).parent.parent.parent / "tools" / "launch"
SLURM = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "3", "SLURM_STEP_NODELIST": "a,b", "SLURM_NTASKS": "16"}
GIVEN = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
# What each of them sets in its processes, and who is found by that.
LAUNCHED = {
    "slurm.sh": (
        {"SLURM_JOB_ID": "7", "SLURM_PROCID": "3", "SLURM_STEP_NODELIST": "a,b", "SLURM_NTASKS": "16"},
        "slurm",
    ),
    "kubernetes.yaml": (
        {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
        "explicit",
    ),
    "gke_tpu.yaml": ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0", "TPU_SKIP_MDS_QUERY": "1"}, "gketpu"),
    "tpu_vm.sh": ({}, "gcetpu"),
    "mpirun.sh": ({"OMPI_COMM_WORLD_SIZE": "16", "JAX_COORDINATOR_ADDRESS": "a:8476"}, "ompi"),
    "torchrun.sh": ({"RANK": "0", "WORLD_SIZE": "16", "MASTER_ADDR": "a", "MASTER_PORT": "29400"}, "torchrun"),
    "by_hand.sh": (GIVEN, "explicit"),
}
QWEN_32B = DecoderConfig(
    "qwen2", D=5120, K=8, G=5, H=128, F=27648, V=152064, L=64, rope_theta=1e6, tied=False, qkv_bias=True
)
HOSTS, WRITTEN, HASHED, STEP = 2, 1e9, 1e9, 240  # hosts; bytes a second and host; seconds of the longest step


def test_every_script_is_of_a_launcher_that_is_recognised():
    assert {path.name for path in FOLDER.iterdir()} == LAUNCHED.keys()
    for name, (environment, who) in LAUNCHED.items():
        kubernetes = {"KUBERNETES_SERVICE_HOST": "a", "JOB_COMPLETION_INDEX": "0"} if name.endswith(".yaml") else {}
        assert launcher({**environment, **kubernetes}, is_tpu_vm="tpu" in name) == who, name


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_scripts_are_read_by_what_runs_them(name):
    path = FOLDER / name
    if path.suffix == ".sh":
        assert path.stat().st_mode & 0o100 and subprocess.run(["bash", "-n", str(path)]).returncode == 0
    else:
        service, job = yaml.safe_load_all(path.read_text())
        assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
        assert job["spec"]["completions"] == job["spec"]["parallelism"]


def test_grace_periods_cover_write_and_hash_of_the_largest_recipe():
    """Bytes of the state that is saved, of the 32B recipe, from its own abstract state."""
    recipe = Recipe(OptimizerConfig(), LossConfig(), 315, "bfloat16", "full")
    state = jax.eval_shape(lambda: initial_state(Decoder(QWEN_32B, jax.random.key(0)), recipe))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert round(size / 1e9) == 393
    needed = STEP + size / HOSTS / WRITTEN + size / HOSTS / HASHED
    for name in LAUNCHED:
        text = (FOLDER / name).read_text()
        graces = re.findall(
            r"TERM@(\d+)|GracePeriodSeconds: (\d+)|sigkill_timeout (\d+)|(\d+) s\b(?= \(| are enough)", text
        )
        seconds = [int(value) for found in graces for value in found if value]
        assert seconds and min(seconds) >= needed, (name, seconds, needed)
        assert "393 GB" in text, f"{name} says for how much that is enough"
