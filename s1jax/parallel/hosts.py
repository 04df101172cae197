"""JAX on several hosts: how the processes were launched, and whether they are at the same work."""

import contextlib
import glob
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

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
    """Join the other processes, where there are any. Must run before any device is asked for.

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


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """Within this context an error ends a process of several without the usual end, which waits for the others.

    They may be gone, or wait for this one; whoever started them sees this one fail and can start all of them again.
    """
    try:
        yield
    except Exception:
        if jax.process_count() == 1:
            raise
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def agree(facts: Mapping[str, Any]) -> None:
    """Compare what the processes are about to do; all must call it. Nothing is compared where there is one process.

    Args:
      facts: plain data by name: config keys, versions, a digest of the rows.

    Raises:
      BadInput: in every process, when two of them differ; names the first key, the processes and both values.
    """
    if jax.process_count() == 1:
        return
    text = np.frombuffer(json.dumps(facts, sort_keys=True).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(text.size))
    texts = multihost_utils.process_allgather(np.pad(text, (0, int(sizes.max()) - text.size)))
    first, *others = (json.loads(row[:size].tobytes()) for row, size in zip(texts, sizes, strict=True))
    for process, other in enumerate(others, 1):
        for key in sorted({*first, *other}):
            if first.get(key) != other.get(key):
                raise BadInput(
                    f"the processes are not at the same work: {key} is {first.get(key)!r} in process 0 and "
                    f"{other.get(key)!r} in process {process}; start all with the same code, config and data"
                )
