"""JAX on several hosts: how the processes were launched, and whether they are at the same work."""

import contextlib
import dataclasses
import glob
import importlib.util
import json
import os
import re
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from s1jax.config import BadInput, Positive
from s1jax.runs.places import DiskFull, is_full

EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

TORCH = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
STRANGERS = {
    "PMI_SIZE": "MPICH or Intel MPI",
    "MV2_COMM_WORLD_SIZE": "MVAPICH",
    "JSM_NAMESPACE_SIZE": "jsrun",
    "FLUX_JOB_SIZE": "Flux",
}
AGREED = "(raised in every process)"
LINGER_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class HostsConfig:
    """How long the processes of one run wait for each other.

    Attributes:
      connect_seconds: at the start, until all have come.
      silent_seconds: without a sign of life of one, until the others end.
      leave_seconds: at the end, until all are ready to leave.
    """

    connect_seconds: Positive = 300
    silent_seconds: Positive = 100
    leave_seconds: Positive = 300


def launcher(environment: Mapping[str, str], *, is_tpu_vm: bool) -> str | None:
    """Who started this process as one of several, or None for a single process.

    One that starts inside another's allocation is asked first: `mpirun` and `torchrun` run in SLURM jobs, and a TPU of
    GKE in Kubernetes.

    Args:
      environment: the environment variables.
      is_tpu_vm: this machine has TPU chips; there JAX itself knows how many hosts there are.

    Returns: `explicit`, `ompi`, `torchrun`, `slurm`, `gketpu`, `k8s`, `gcetpu` or None.

    Raises:
      BadInput: a launcher that says too little, or one that is known only by name.
    """
    if _is_given(environment, EXPLICIT, "explicit"):
        return "explicit"
    if _number(environment, "OMPI_COMM_WORLD_SIZE") > 1:
        return "ompi"
    if _number(environment, "WORLD_SIZE") > 1 and "RANK" in environment and _is_given(environment, TORCH, "torchrun"):
        return "torchrun"
    is_step = {"SLURM_JOB_ID", "SLURM_PROCID", "SLURM_STEP_NODELIST"} <= environment.keys()
    if is_step and _number(environment, "SLURM_NTASKS") > 1:
        return "slurm"
    for name, who in STRANGERS.items():
        if _number(environment, name) > 1:
            raise BadInput(
                f"{name}={environment[name]}: started as one of several by {who}, whose processes do not find each "
                f"other here; set {', '.join(EXPLICIT)} in each, or start them with srun, mpirun (Open MPI) or torchrun"
            )
    if is_tpu_vm and ("TPU_WORKER_HOSTNAMES" in environment or "TPU_PROCESS_ADDRESSES" in environment):
        return "gketpu"
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        return "k8s"
    return "gcetpu" if is_tpu_vm and "TPU_SKIP_MDS_QUERY" not in environment else None


def _is_given(environment: Mapping[str, str], names: Sequence[str], by: str) -> bool:
    """Whether all of the variables are set; raises BadInput when only some are."""
    given = [name for name in names if environment.get(name)]
    alone = by == "explicit" and given == [EXPLICIT[0]] and _number(environment, "OMPI_COMM_WORLD_SIZE") > 1
    if given and len(given) < len(names) and not alone:
        missing = ", ".join(name for name in names if name not in given)
        raise BadInput(f"{', '.join(given)} is set, {missing} is not; set all of them, or none")
    return len(given) == len(names)


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name) or "1"
    if not text.isdecimal():
        raise BadInput(f"{name}={text!r} is not a number; set it to the number that the launcher means")
    return int(text)


def start(limits: HostsConfig | None = None) -> None:
    """Join the other processes, where there are any. Must run before any device is asked for.

    Raises:
      BadInput: the launcher is known, but lacks something to connect with.
    """
    if jax.distributed.is_initialized():
        return
    is_tpu_vm = bool(importlib.util.find_spec("libtpu") and (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")))
    found = launcher(os.environ, is_tpu_vm=is_tpu_vm)
    if found is None:
        return
    limits = limits or HostsConfig()
    for name in (field.name for field in dataclasses.fields(limits)):
        if getattr(limits, name) < 1:
            raise BadInput(f"hosts.{name}={getattr(limits, name)}; it must be at least 1")
    if found == "k8s" and importlib.util.find_spec("kubernetes") is None:
        raise BadInput(
            "an indexed Kubernetes job needs the package `kubernetes` to find its coordinator; install it, or set "
            + ", ".join(EXPLICIT)
        )
    jax.distributed.initialize(
        **joining(found, os.environ),
        initialization_timeout=limits.connect_seconds,
        heartbeat_timeout_seconds=limits.silent_seconds,
        shutdown_timeout_seconds=limits.leave_seconds,
    )


def joining(launcher: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of `jax.distributed.initialize`: who is who, or how JAX itself finds out.

    Raises:
      BadInput: Open MPI's variables do not tell where the first process is.
    """
    if launcher == "explicit":
        return {
            "coordinator_address": environment[EXPLICIT[0]],
            "num_processes": _number(environment, EXPLICIT[1]),
            "process_id": int(environment[EXPLICIT[2]]),
        }
    if launcher == "torchrun":
        # torchrun itself listens on MASTER_PORT.
        port = _number(environment, "MASTER_PORT") + 1
        return _ranked(environment, f"{environment['MASTER_ADDR']}:{port}", "WORLD_SIZE", "RANK", "LOCAL_RANK")
    if launcher == "ompi":
        address = environment.get(EXPLICIT[0]) or _ompi_address(environment)
        names = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
        return _ranked(environment, address, *names)
    return {"cluster_detection_method": launcher}


def _ranked(environment: Mapping[str, str], address: str, size: str, rank: str, local_rank: str) -> dict[str, Any]:
    """One of several processes of a host has one of its GPUs; the only one has all."""
    local_size = local_rank.replace("RANK", "WORLD_SIZE" if local_rank == "LOCAL_RANK" else "SIZE")
    is_one_of_several = _number(environment, local_size) > 1 and local_rank in environment
    found = {"coordinator_address": address, "num_processes": _number(environment, size)}
    local = {"local_device_ids": [int(environment[local_rank])]} if is_one_of_several else {}
    return {**found, "process_id": int(environment[rank]), **local}


def _ompi_address(environment: Mapping[str, str]) -> str:
    """Where the first process listens: mpirun's own host before version 5, this host where all processes are on it."""
    job = environment.get("OMPI_MCA_orte_hnp_uri") or environment.get("PMIX_NAMESPACE", "")
    port = 61000 + zlib.crc32(job.encode()) % 4000
    if found := re.search(r"tcp://([^,:]+)|tcp6://\[([^,\]]+)", environment.get("OMPI_MCA_orte_hnp_uri", "")):
        return f"{found[1] or found[2]}:{port}"
    if _number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE") == _number(environment, "OMPI_COMM_WORLD_SIZE"):
        return f"127.0.0.1:{port}"
    raise BadInput(
        "Open MPI from version 5 on does not say where process 0 is; give its host and a free port: mpirun -x "
        f"{EXPLICIT[0]}=HOST:8476 ..."
    )


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """Within this context an error ends a process of several without the usual end, which waits for the others.

    They may be gone, or wait for this one; whoever started them sees this one fail and can start all of them again.
    The first one lingers: it holds what the others are joined by, and they may be about to say the same.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        is_plain = isinstance(error, (BadInput, DiskFull))
        if not is_plain:
            traceback.print_exc()
        elif jax.process_index() == 0 or not _is_agreed(error):
            print(f"s1jax: {' '.join(str(error).split())}", file=sys.stderr)
        sys.stderr.flush()
        if jax.process_index() == 0:
            time.sleep(LINGER_SECONDS)
        os._exit(2 if is_plain else 1)


def agreed(error: Exception) -> Exception:
    """Mark an error as one that every process raises: one of them says it."""
    error.add_note(AGREED)
    return error


def _is_agreed(error: BaseException) -> bool:
    return AGREED in getattr(error, "__notes__", ())


def gather(value: Any) -> list[Any]:
    """Plain data of every process, in their order; all must call it. They meet on the devices, without a limit."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value, sort_keys=True).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(text.size))
    texts = multihost_utils.process_allgather(np.pad(text, (0, int(sizes.max()) - text.size)))
    return [json.loads(row[:size].tobytes()) for row, size in zip(texts, sizes, strict=True)]


def of_first(make: Callable[[], Any]) -> Any:
    """What `make` returns in the first process, plain data, in all of them; the others do not call it.

    What it raises is raised in all of them, as what it was where it is BadInput or DiskFull.
    """
    if jax.process_count() == 1:
        return make()
    mine: list[Any] = []
    raised: Exception | None = None
    if jax.process_index() == 0:
        try:
            mine = [make()]
        except Exception as error:
            raised = error
            kind = "full" if is_full(error) else "input" if isinstance(error, BadInput) else "other"
            mine = [kind, str(error) if kind != "other" else f"{type(error).__name__}: {error}"]
    found = gather(mine)[0]
    if len(found) == 1:
        return found[0]
    kinds = {"full": DiskFull, "input": BadInput, "other": RuntimeError}
    raise agreed(kinds[found[0]](found[1])) from raised


def agree(facts: Mapping[str, Any]) -> None:
    """Compare what the processes are about to do; all must call it. Nothing is compared where there is one process.

    Args:
      facts: plain data by name: config keys, versions, a digest of the rows.

    Raises:
      BadInput: in every process, when two of them differ; names the first key, the processes and both values.
    """
    if jax.process_count() == 1:
        return
    first, *others = gather(facts)
    for process, other in enumerate(others, 1):
        for key in sorted({*first, *other}):
            if first.get(key) != other.get(key):
                raise agreed(
                    BadInput(
                        f"the processes are not at the same work: {key} is {first.get(key)!r} in process 0 and "
                        f"{other.get(key)!r} in process {process}; start all with the same code, config and data"
                    )
                )
