"""Starting JAX on several hosts: finds out how the processes were launched. Must run before any device is asked for."""

import glob
import importlib.util
import os
from collections.abc import Mapping

import jax

from s1jax.config import BadInput

EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def launcher(environment: Mapping[str, str], *, is_tpu_vm: bool) -> str | None:
    """Who started this process as one of several: `explicit`, `slurm`, `k8s`, `tpu`, or None for a single process.

    Args:
      environment: the environment variables.
      is_tpu_vm: this machine has TPU chips; there JAX itself knows how many hosts there are.

    Raises:
      BadInput: some, but not all, of the explicit variables are set.
    """
    given = [name for name in EXPLICIT if environment.get(name)]
    if given and len(given) < len(EXPLICIT):
        missing = ", ".join(name for name in EXPLICIT if name not in given)
        raise BadInput(f"{', '.join(given)} is set, {missing} is not; set all of them, or none")
    if given:
        return "explicit"
    is_step = {"SLURM_JOB_ID", "SLURM_PROCID", "SLURM_STEP_NODELIST"} <= environment.keys()
    if is_step and _number(environment, "SLURM_NTASKS") > 1:
        return "slurm"
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        return "k8s"
    return "tpu" if is_tpu_vm and "TPU_SKIP_MDS_QUERY" not in environment else None


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "1")
    if not text.isdecimal():
        raise BadInput(f"{name}={text!r} is not a number; set it to the number that the launcher means")
    return int(text)


def start() -> None:
    """Join the other processes, where there are any. Does nothing when that is done already.

    Raises:
      BadInput: the launcher is known, but lacks something to connect with.
    """
    if jax.distributed.is_initialized():
        return
    is_tpu_vm = bool(importlib.util.find_spec("libtpu") and (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")))
    match launcher(os.environ, is_tpu_vm=is_tpu_vm):
        case "explicit":
            count, index = (_number(os.environ, name) for name in EXPLICIT[1:])
            jax.distributed.initialize(os.environ[EXPLICIT[0]], count, index)
        case "k8s" if importlib.util.find_spec("kubernetes") is None:
            raise BadInput(
                "an indexed Kubernetes job needs the package `kubernetes` to find its coordinator; install it, or set "
                + ", ".join(EXPLICIT)
            )
        case "slurm" | "k8s" | "tpu":
            jax.distributed.initialize()
        case _:
            pass
