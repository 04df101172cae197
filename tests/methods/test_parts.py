"""Several engines, in one process and in two, write what one would: parts, their merging, kills, and who may write."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import jax
import pytest
from eval_cases import session, tokenizer_folder

from s1jax import __main__ as cli
from s1jax import records
from s1jax.checkpoint import hf
from s1jax.config import BadInput
from s1jax.eval import run as evaluation
from s1jax.eval.run import EvalRun
from s1jax.methods import parts
from s1jax.methods.parts import Parts, Share, assign_engine, files_of, share_of
from s1jax.methods.stored import stored
from s1jax.models.decoder import Decoder
from s1jax.models.family import DecoderConfig
from s1jax.parallel.mesh import MeshConfig
from s1jax.records import Completion
from s1jax.runs.lock import locked
from s1jax.text.tokens import Tokenizer

CONFIG = DecoderConfig("qwen2", D=32, K=2, G=2, H=8, F=48, V=264, L=1, max_position=160, tied=True, qkv_bias=True)
N = 14


def row(id: str, sample: int = 0) -> Completion:
    return Completion(id, sample, 0, (1,), (2, 3), (False,) * 2, 0, 0, 1, 2, None, "stop", f"text of {id}")


KEYS = [(f"q{i}", sample) for i in range(9) for sample in (0, 1)]


def written(path: pathlib.Path) -> list[tuple[str, int]]:
    return [(line["id"], line["sample"]) for line in records.read_jsonl(path, allow_empty=True)]


# ------------------------------------------------------------------------------------------------ parts and merging


def test_parts_become_one_file_in_the_order_asked_for(tmp_path):
    """Of four engines of which one had written alone before; what is not asked for any more stays, at the end."""
    path = tmp_path / "rows.jsonl"
    with Parts(path, Share()) as alone:
        for key in (("old", 0), ("q3", 1), ("q1", 0)):
            alone.write(row(*key))
    with path.open("a") as torn:
        torn.write('{"id": "q8", "sam')
    share = Share(0, 4, 4)
    with Parts(path, share) as several:
        for key in KEYS[::-1]:
            if key not in (("q3", 1), ("q1", 0)):
                several.write(row(*key))
        for part in files_of(path)[1:]:
            number = int(part.stem.rpartition("-")[2])
            assert {assign_engine(id, 4) for id, _ in written(part)} == {number}
        assert len(files_of(path)) >= 4
        assert several.merge(KEYS)
    assert files_of(path) == [path]
    lines = path.read_text().splitlines()
    assert lines == [json.dumps(records.to_row(row(*key))) for key in [*KEYS, ("old", 0)]]


def test_a_merge_that_was_killed_is_done_again(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"

    def die(*_):
        raise KeyboardInterrupt

    for name in ("replace", "unlink"):
        with Parts(path, Share(0, 3, 3)) as several:
            done = {key for part in files_of(path) for key in written(part)}
            for key in KEYS:
                if key not in done:
                    several.write(row(*key))
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(parts.os if name == "replace" else pathlib.Path, name, die)
                several.merge(KEYS)
        assert len(files_of(path)) > 1
    found = list(stored(path, Completion, {key: (1,) for key in KEYS}))
    assert len(found) == len(KEYS)  # the file and its parts hold each row, which counts once
    assert Parts(path, Share(0, 2, 2)).merge(KEYS)
    assert files_of(path) == [path] and written(path) == KEYS


def test_the_first_process_waits_for_the_others_and_they_for_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parts, "POLL_SECONDS", 0.01)
    path, went_on = tmp_path / "rows.jsonl", {}
    shares = [Share(0, 2, 4), Share(2, 2, 4)]
    assert {share.engine_of(id) is None for share in shares for id, _ in KEYS} == {True, False}

    def work(share: Share) -> None:
        with Parts(path, share) as mine:
            for key in KEYS:
                if share.engine_of(key[0]) is not None:
                    mine.write(row(*key))
            went_on[share.first] = mine.merge(KEYS)

    first = threading.Thread(target=work, args=shares[:1])
    first.start()
    time.sleep(0.1)
    assert first.is_alive() and not went_on
    work(shares[1])
    first.join()
    assert went_on == {0: True, 2: False} and written(path) == KEYS and files_of(path) == [path]
    assert "rows of rows.jsonl by other processes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("processes", "index", "data", "tensor", "expected"),
    [
        (1, 0, 1, 1, Share(0, 1, 1)),
        (1, 0, 4, 2, Share(0, 4, 4)),
        (1, 0, -1, 2, Share(0, 4, 4)),
        (4, 3, 8, 4, Share(6, 2, 8)),
        (4, 1, -1, 8, Share(1, 1, 4)),
        (2, 0, 3, 1, "mesh.data=3 copies of mesh.tensor=1 .*multiple of 2"),
        (2, 0, 1, 1, "mesh.data=1 copies .*8 devices in each process, of which there are 2"),
        (2, 0, 6, 4, "mesh.data=6 copies of mesh.tensor=4 devices do not fit 8"),
    ],
)
def test_every_process_has_its_share_of_the_engines(processes, index, data, tensor, expected, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(jax, "process_index", lambda: index)
    mesh = MeshConfig(data=data, fsdp=1, tensor=tensor)
    if isinstance(expected, Share):
        assert share_of(mesh) == expected
    else:
        with pytest.raises(BadInput, match=expected):
            share_of(mesh)


# ---------------------------------------------------------------------------------------------------------- engines


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, prompts, and what one engine of two devices makes of them."""
    folder = tmp_path_factory.mktemp("world")
    tokenizer = Tokenizer.load(tokenizer_folder(folder / "tokenizer"))
    weights = jax.jit(lambda key: jax.tree.map(lambda x: x * 2.0, Decoder(CONFIG, key)))(jax.random.key(5))
    hf.save(weights, folder / "hf", tokenizer_source=tokenizer)
    records.write_jsonl(folder / "prompts.jsonl", [{"id": f"p{i}", "question": "?" * (1 + i % 5)} for i in range(N)])
    assert cli.main(generate(folder, folder / "one", "mesh.tensor=2")) == 0
    return folder


def generate(world: pathlib.Path, out: pathlib.Path, *overrides: str) -> list[str]:
    return [
        "generate", f"model={world / 'hf'}", f"prompts={world / 'prompts.jsonl'}", f"out={out}", "dtype=float32",
        "sampling.temperature=1.0", "sampling.n=2", "engine.slots=4", "engine.window=8", "engine.max_length=96",
        "engine.prefill_smallest=96", "control.thinking_token_budget=20", *overrides,
    ]  # fmt: skip


def test_two_engines_of_two_devices_write_the_file_of_one(world, tmp_path):
    assert cli.main(generate(world, tmp_path / "two", "mesh.data=2", "mesh.tensor=2")) == 0
    ours = (tmp_path / "two" / "completions.jsonl").read_bytes()
    assert ours == (world / "one" / "completions.jsonl").read_bytes()
    assert written(tmp_path / "two" / "completions.jsonl") == [(f"p{i}", s) for i in range(N) for s in (0, 1)]
    assert not list((tmp_path / "two").glob("*.part-*"))


DYING = """
import os, signal, sys
from s1jax import records
left, write = int(sys.argv[1]), records.JsonlWriter.write
def counted(self, row):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    write(self, row)
records.JsonlWriter.write = counted
from s1jax.__main__ import main
code = main(sys.argv[2:])
print("left", left)
sys.exit(code)
"""


def start(arguments: list[str], rows: list[int], own: Sequence[str] = ("seed=0",) * 2) -> list[subprocess.Popen]:
    """Two processes of four devices; each dies by kill -9 when it is to write a row more than it may."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = os.environ["XLA_FLAGS"].replace("count=8", "count=4")
    names = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "XLA_FLAGS": flags}
    return [
        subprocess.Popen(
            [sys.executable, "-c", DYING, str(most), *arguments, own[index]],
            env={**os.environ, **names, "JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, most in enumerate(rows)
    ]


def test_two_processes_killed_and_started_again_write_the_file_of_one(world, tmp_path):
    """An engine in each; one is killed, then the other. Started again they complete what was missing, no more."""
    out = tmp_path / "out"
    arguments, ours, theirs = generate(world, out, "mesh.data=2", "mesh.tensor=2"), Share(0, 1, 2), Share(1, 1, 2)
    n_theirs = 2 * sum(theirs.engine_of(f"p{i}") is not None for i in range(N))
    assert 3 < n_theirs < 2 * N - 3
    first = start(arguments, [1000, 3])
    first[1].communicate(timeout=300)
    assert first[1].returncode == -signal.SIGKILL
    first[0].kill()
    first[0].communicate(timeout=60)
    before = [line for part in files_of(out / "completions.jsonl") for line in part.read_text().splitlines()]
    n_ours = sum(ours.engine_of(json.loads(line)["id"]) is not None for line in before)
    assert len(before) - n_ours == 3 and not (out / "completions.jsonl").exists()
    second = start(arguments, [1000, 1000])
    said = [process.communicate(timeout=300) for process in second]
    assert [process.returncode for process in second] == [0, 0], said
    wrote = [1000 - int(text.split()[-1]) for text, _ in said]
    assert wrote == [2 * N - n_theirs - n_ours, n_theirs - 3]
    assert (out / "completions.jsonl").read_bytes() == (world / "one" / "completions.jsonl").read_bytes()
    assert not list(out.glob("*.part-*"))


def test_processes_of_different_configs_are_refused(world, tmp_path):
    started = start(
        generate(world, tmp_path / "out", "mesh.data=2", "mesh.tensor=2"), [1000, 1000], ["seed=1", "seed=2"]
    )
    said = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [2, 2], said
    assert all("seed is 1 in process 0 and 2 in process 1" in errors for _, errors in said)
    assert not (tmp_path / "out").exists()


def test_a_sweep_over_processes_leaves_the_samples_and_reports_of_one(world, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "POLL_SECONDS", 0.01)
    records.write_jsonl(
        tmp_path / "questions.jsonl", [{"id": f"q{i}", "question": f"{i}?", "answer": i} for i in range(12)]
    )

    def config(name: str) -> EvalRun:
        fields = {"model": str(world / "hf"), "benchmark": str(tmp_path / "questions.jsonl"), "grader": "integer"}
        return EvalRun(**fields, out=str(tmp_path / name), budgets=(4, 30))

    def work(name: str, share: Share) -> None:
        own, _ = session(config(name), lambda request: ("t" * 20, f"\nAnswer: {len(request.id)}"))
        own.share = share
        own._make = lambda *arguments, make=own._make: [*(make(*arguments)[0] for _ in range(share.count))]
        evaluation.run(config(name), own)

    def join() -> None:
        """As between processes: the first one opens the folder before any other goes on."""
        while not (tmp_path / "two" / "run.json").is_file():
            time.sleep(0.01)
        work("two", Share(1, 2, 3))

    other = threading.Thread(target=join)
    other.start()
    work("two", Share(0, 1, 3))
    other.join()
    work("one", Share())
    for name in ("budget-4", "budget-30"):
        one, two = tmp_path / "one" / name, tmp_path / "two" / name
        assert {path.name for path in two.iterdir()} == {"samples.jsonl", "report.json"}
        assert (two / "samples.jsonl").read_bytes() == (one / "samples.jsonl").read_bytes()
        assert (two / "report.json").read_bytes() == (one / "report.json").read_bytes()


# ---------------------------------------------------------------------------------------------- one run in a folder

HOLDING = """
import sys, time
from s1jax.runs.lock import locked
with locked(sys.argv[1]):
    print("in", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_one_run_s_until_it_ends_however_it_ends(world, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    other = subprocess.Popen([sys.executable, "-c", HOLDING, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "in\n"
        with pytest.raises(BadInput, match=f"out is in use by process {other.pid} on {socket.gethostname()}; wait"):
            with locked(out):
                pytest.fail("two in one folder")
    finally:
        other.kill()
        other.communicate()
    with locked(out):
        assert json.loads((out / ".lock").read_text())["pid"] == os.getpid()
    assert not list(out.iterdir())


def test_generate_and_eval_stay_out_of_a_folder_in_use(world, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(generate(world, out, "mesh.tensor=2")) == 0
    before = (out / "completions.jsonl").read_bytes()
    other = subprocess.Popen([sys.executable, "-c", HOLDING, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "in\n"
        assert cli.main(generate(world, out, "mesh.tensor=2")) == 2
        assert f"in use by process {other.pid}" in capsys.readouterr().err
    finally:
        other.kill()
        other.communicate()
    assert cli.main(generate(world, out, "mesh.tensor=2")) == 0
    assert (out / "completions.jsonl").read_bytes() == before
