"""Several processes: who launched them, how they are joined, whether they are at the same work, how one leaves."""

import json

import jax
import numpy as np
import pytest

from s1jax.config import BadInput
from s1jax.parallel import hosts
from s1jax.parallel.hosts import EXPLICIT, agree, launcher, leaving_at_once

SLURM = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "a[1-2]", "SLURM_NTASKS": "2"}
K8S = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}
GIVEN = {EXPLICIT[0]: "a:1", EXPLICIT[1]: "2", EXPLICIT[2]: "1"}


@pytest.mark.parametrize(
    ("environment", "is_tpu_vm", "expected"),
    [
        (GIVEN, False, "explicit"),
        ({**dict.fromkeys(EXPLICIT, ""), **K8S}, False, "k8s"),  # set but empty is not set
        (SLURM, False, "slurm"),
        ({**SLURM, "SLURM_NTASKS": "1"}, False, None),  # a job of one task
        ({**SLURM, "SLURM_NTASKS": "1"}, True, "tpu"),
        ({key: value for key, value in SLURM.items() if key != "SLURM_NTASKS"}, False, None),
        *(({k: v for k, v in SLURM.items() if k != name}, False, None) for name in list(SLURM)[:3]),
        ({**K8S, **SLURM}, False, "slurm"),
        *(({name: value}, False, None) for name, value in K8S.items()),
        ({}, True, "tpu"),
        ({"TPU_SKIP_MDS_QUERY": "1"}, True, None),
        ({}, False, None),
    ],
)
def test_who_launched(environment, is_tpu_vm, expected):
    assert launcher(environment, is_tpu_vm=is_tpu_vm) == expected


def test_an_empty_variable_is_missing():
    with pytest.raises(BadInput, match=f"{EXPLICIT[0]}, {EXPLICIT[1]} is set, {EXPLICIT[2]} is not; set all of them"):
        launcher({**GIVEN, EXPLICIT[2]: ""}, is_tpu_vm=False)


@pytest.fixture
def joined(monkeypatch):
    """The arguments with which JAX was asked to join."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: False)
    for name in (*EXPLICIT, *SLURM, *K8S):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_processes_are_joined_as_their_launcher_says(joined, monkeypatch):
    hosts.start()
    assert joined == [], "a single process joins nobody"
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    hosts.start()
    assert joined == [()], "JAX itself asks SLURM"
    for name, value in GIVEN.items():
        monkeypatch.setenv(name, value)
    hosts.start()
    assert joined[1:] == [("a:1", 2, 1)], "address, processes, index"
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    hosts.start()
    assert len(joined) == 2, "once"


def test_chips_and_their_library_make_a_tpu(joined, monkeypatch):
    found = {"libtpu": True, "/dev/accel*": [], "/dev/vfio/[0-9]*": ["/dev/vfio/0"]}
    monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda name: found.get(name))
    monkeypatch.setattr(hosts.glob, "glob", found.get)
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    hosts.start()
    assert joined == [()]
    found["/dev/vfio/[0-9]*"] = []
    hosts.start()
    found |= {"libtpu": None, "/dev/accel*": ["/dev/accel0"]}
    hosts.start()
    assert joined == [()], "neither a library without chips nor chips without it"


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
    with leaving_at_once():
        raise KeyError("of several")
    assert codes == [1] and "KeyError: 'of several'" in capsys.readouterr().err
    with pytest.raises(SystemExit), leaving_at_once():  # stopped by SIGTERM: no error
        raise SystemExit(75)
    assert codes == [1]
