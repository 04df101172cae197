"""Several processes: who launched them, how they are joined, whether they are at the same work, how one leaves."""

import json

import jax
import numpy as np
import pytest

from s1jax.config import BadInput
from s1jax.parallel import hosts
from s1jax.parallel.hosts import EXPLICIT, HostsConfig, agree, joining, launcher, leaving_at_once
from s1jax.runs.places import DiskFull

SLURM = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "a[1-2]", "SLURM_NTASKS": "2"}
K8S = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}
OMPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}
OMPI |= {"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "29400"}
TORCHRUN |= {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
GKE = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}
GIVEN = {EXPLICIT[0]: "a:1", EXPLICIT[1]: "2", EXPLICIT[2]: "1"}


@pytest.mark.parametrize(
    ("environment", "is_tpu_vm", "expected"),
    [
        (GIVEN, False, "explicit"),
        ({**dict.fromkeys(EXPLICIT, ""), **K8S}, False, "k8s"),  # set but empty is not set
        ({**OMPI, **SLURM}, False, "ompi"),  # mpirun in a SLURM job: srun started one daemon a host
        ({**OMPI, "OMPI_COMM_WORLD_SIZE": "1"}, False, None),
        ({**OMPI, EXPLICIT[0]: "a:1"}, False, "ompi"),  # the address alone says where, Open MPI says who
        ({**TORCHRUN, **SLURM}, False, "torchrun"),
        ({**TORCHRUN, "WORLD_SIZE": "1"}, False, None),
        ({"WORLD_SIZE": "2"}, False, None),  # without a rank it is another's word
        ({**GKE, **K8S}, True, "gketpu"),  # a TPU of GKE is no plain Kubernetes
        ({**GKE, "TPU_SKIP_MDS_QUERY": "true"}, True, "gketpu"),  # as GKE sets it
        ({**GKE, **K8S}, False, "k8s"),  # a pod without chips
        ({**SLURM, "PMI_SIZE": "2", "PMI_RANK": "0"}, False, "slurm"),  # srun says so too
        ({"PMI_SIZE": "1"}, False, None),
        (SLURM, False, "slurm"),
        ({**SLURM, "SLURM_NTASKS": "1"}, False, None),  # a job of one task
        ({**SLURM, "SLURM_NTASKS": "1"}, True, "gcetpu"),
        ({key: value for key, value in SLURM.items() if key != "SLURM_NTASKS"}, False, None),
        *(({k: v for k, v in SLURM.items() if k != name}, False, None) for name in list(SLURM)[:3]),
        ({**K8S, **SLURM}, False, "slurm"),
        *(({name: value}, False, None) for name, value in K8S.items()),
        ({}, True, "gcetpu"),
        ({"TPU_SKIP_MDS_QUERY": "1"}, True, None),
        ({}, False, None),
    ],
)
def test_who_launched(environment, is_tpu_vm, expected):
    assert launcher(environment, is_tpu_vm=is_tpu_vm) == expected


def test_an_empty_variable_is_missing():
    with pytest.raises(BadInput, match=f"{EXPLICIT[0]}, {EXPLICIT[1]} is set, {EXPLICIT[2]} is not; set all of them"):
        launcher({**GIVEN, EXPLICIT[2]: ""}, is_tpu_vm=False)


@pytest.mark.parametrize("name", hosts.STRANGERS)
def test_a_launcher_known_only_by_name_is_refused(name):
    with pytest.raises(BadInput, match=f"{name}=2: started as one of several by {hosts.STRANGERS[name]}, whose"):
        launcher({name: "2"}, is_tpu_vm=True)


@pytest.mark.parametrize("name", ["MASTER_ADDR", "MASTER_PORT"])
def test_torchrun_that_says_too_little(name):
    with pytest.raises(BadInput, match=f"is set, {name} is not; set all of them, or none"):
        launcher({key: value for key, value in TORCHRUN.items() if key != name}, is_tpu_vm=False)


def test_a_number_that_is_none():
    with pytest.raises(BadInput, match="OMPI_COMM_WORLD_SIZE='two' is not a number"):
        launcher({"OMPI_COMM_WORLD_SIZE": "two"}, is_tpu_vm=False)


def test_who_is_who_of_mpirun_and_torchrun():
    one = {"num_processes": 4, "process_id": 3, "local_device_ids": [1]}
    assert joining("torchrun", TORCHRUN) == {"coordinator_address": "a:29401", **one}
    alone = {**TORCHRUN, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    assert "local_device_ids" not in joining("torchrun", alone), "the only one on a host has all of its devices"
    assert joining("ompi", {**OMPI, EXPLICIT[0]: "b:5"}) == {"coordinator_address": "b:5", **one}
    for uri, host in (
        ("1531576320.0;tcp://10.96.0.1,10.148.0.1:34911", "10.96.0.1"),
        ("1.0;tcp6://[fe80::1,2::]:1", "fe80::1"),
    ):
        (address, port) = joining("ompi", {**OMPI, "OMPI_MCA_orte_hnp_uri": uri})["coordinator_address"].rsplit(":", 1)
        assert address == host and 61000 <= int(port) < 65000
    here = {**OMPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "PMIX_NAMESPACE": "prterun-a-1@1"}
    addresses = {
        joining("ompi", {**here, "OMPI_COMM_WORLD_RANK": str(rank)})["coordinator_address"] for rank in range(4)
    }
    assert len(addresses) == 1 and addresses.pop().startswith("127.0.0.1:"), "all are on this host and agree on a port"
    with pytest.raises(BadInput, match="Open MPI from version 5 on does not say where process 0 is; give its host"):
        joining("ompi", OMPI)


@pytest.fixture
def joined(monkeypatch):
    """The arguments with which JAX was asked to join."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: False)
    for name in (*EXPLICIT, *SLURM, *K8S, *OMPI, *TORCHRUN, *GKE):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_processes_are_joined_as_their_launcher_says(joined, monkeypatch):
    hosts.start()
    assert joined == [], "a single process joins nobody"
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    hosts.start()
    waits = {"initialization_timeout": 300, "heartbeat_timeout_seconds": 100, "shutdown_timeout_seconds": 300}
    assert joined == [{"cluster_detection_method": "slurm", **waits}], "JAX itself asks SLURM"
    for name, value in GIVEN.items():
        monkeypatch.setenv(name, value)
    hosts.start(HostsConfig(connect_seconds=1, silent_seconds=2, leave_seconds=3))
    given = {"coordinator_address": "a:1", "num_processes": 2, "process_id": 1}
    waits = {"initialization_timeout": 1, "heartbeat_timeout_seconds": 2, "shutdown_timeout_seconds": 3}
    assert joined[1:] == [{**given, **waits}]
    with pytest.raises(BadInput, match="hosts.leave_seconds=0; it must be at least 1"):
        hosts.start(HostsConfig(leave_seconds=0))
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    hosts.start()
    assert len(joined) == 2, "once"


def test_chips_and_their_library_make_a_tpu(joined, monkeypatch):
    found = {"libtpu": True, "/dev/accel*": [], "/dev/vfio/[0-9]*": ["/dev/vfio/0"]}
    monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda name: found.get(name))
    monkeypatch.setattr(hosts.glob, "glob", found.get)
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    hosts.start()
    assert [call["cluster_detection_method"] for call in joined] == ["gcetpu"]
    found["/dev/vfio/[0-9]*"] = []
    hosts.start()
    found |= {"libtpu": None, "/dev/accel*": ["/dev/accel0"]}
    hosts.start()
    assert len(joined) == 1, "neither a library without chips nor chips without it"


def several(monkeypatch, others: list[dict]) -> None:
    """This process is the first of several; the others pass what `others` holds."""
    texts = [json.dumps(other, sort_keys=True).encode() for other in others]

    def allgather(value):
        value = np.asarray(value)
        if value.ndim == 0:
            return np.array([value, *map(len, texts)])
        assert all(len(text) <= value.size for text in texts), "a text of another process was cut"
        rows = [np.frombuffer(text.ljust(value.size, b"\0"), np.uint8) for text in texts]
        return np.stack([value, *rows])

    monkeypatch.setattr(jax, "process_count", lambda: 1 + len(others))
    monkeypatch.setattr(hosts.multihost_utils, "process_allgather", allgather)


FACTS = {"seed": 1, "rows": "abc", "z": None}


def test_processes_at_the_same_work_agree(monkeypatch):
    several(monkeypatch, [dict(reversed(FACTS.items())), FACTS])
    agree(FACTS)


@pytest.mark.parametrize(
    ("others", "says"),
    [
        (
            [FACTS, {**FACTS, "rows": "a much longer text"}],
            "rows is 'abc' in process 0 and 'a much longer text' in process 2",
        ),
        ([{**FACTS, "rows": ""}, FACTS], "rows is 'abc' in process 0 and '' in process 1"),
        ([{**FACTS, "added": 3}], "added is None in process 0 and 3 in process 1"),
        ([{"seed": 1, "z": None}], "rows is 'abc' in process 0 and None in process 1"),
        ([{**FACTS, "seed": 2, "rows": "x"}], "rows is 'abc'"),
    ],
)
def test_a_difference_names_key_processes_and_values(monkeypatch, others, says):
    several(monkeypatch, others)
    with pytest.raises(BadInput, match=says):
        agree(FACTS)


def test_alone_there_is_nothing_to_agree_on():
    agree({"not": object()})


def test_one_of_several_leaves_at_once_and_one_alone_as_usual(monkeypatch, capsys):
    with pytest.raises(KeyError), leaving_at_once():
        raise KeyError("alone")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    codes = []
    monkeypatch.setattr(hosts.os, "_exit", codes.append)
    monkeypatch.setattr(hosts.time, "sleep", lambda seconds: codes.append("lingers"))
    with leaving_at_once():
        raise KeyError("of several")
    assert codes == ["lingers", 1] and "KeyError: 'of several'" in capsys.readouterr().err
    with leaving_at_once():
        raise BadInput("one\nline")
    assert codes[2:] == ["lingers", 2] and capsys.readouterr().err == "s1jax: one line\n"
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with leaving_at_once():
        raise hosts.agreed(DiskFull("no room"))
    assert codes[4:] == [2] and capsys.readouterr().err == "", "the first process says what all know"
    with leaving_at_once():
        raise DiskFull("no room here")
    assert codes[5:] == [2] and "no room here" in capsys.readouterr().err
    del codes[1:]
    with pytest.raises(SystemExit), leaving_at_once():  # stopped by SIGTERM: no error
        raise SystemExit(75)
    assert codes == ["lingers"]
