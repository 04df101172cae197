"""The command line: exit codes, one clear line for bad input, and nothing lost by it."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

from s1jax import __main__ as cli
from s1jax.__main__ import main, prepare_environment
from s1jax.config import BadInput
from s1jax.quickstart import task
from s1jax.quickstart.tokenizer import train_tokenizer
from s1jax.records import JsonlWriter, read_jsonl, write_jsonl

SIZES = "D: 16, K: 1, G: 2, H: 8, F: 32, V: 600, L: 1, max_position: 256"
MODEL = f"{{init: {{family: qwen2, {SIZES}, tied: true, qkv_bias: true}}}}"
TRAIN = ["train", f"model={MODEL}", "global_batch=8", "micro_batch=1", "dtype=float32", "remat=none", "mesh.fsdp=1"]
TRAIN += ["mesh.data=8", "packing.enabled=false", "data.block=96", "save.dtype=float32", "log.tensorboard=false"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> pathlib.Path:
    """A folder with a small tokenizer and rows to train on."""
    folder = tmp_path_factory.mktemp("home")
    train_tokenizer(task.corpus(1, 200)).save(folder / "tokenizer")
    held_out = task.questions(2, 4, held_out=True)
    rows = [row for row in task.pool(1, 60, held_out) if row["source"] == "quickstart/words"][:8]
    write_jsonl(folder / "rows.jsonl", rows)
    return folder


def fails(arguments: list[str], capsys) -> str:
    """The one line that a refused command prints."""
    assert main(arguments) == 2
    printed = capsys.readouterr().err.splitlines()
    assert printed[-1].startswith("s1jax: ") and "Traceback" not in "".join(printed)
    return printed[-1]


def train_arguments(home, out, *extra: str, rows: str = "rows.jsonl") -> list[str]:
    return [*TRAIN, f"tokenizer={home}/tokenizer", f"data.rows={home}/{rows}", f"out={out}", *extra]


def test_overview_and_help(capsys):
    assert main([]) == 0 and "quickstart" in capsys.readouterr().out
    for verb in ("curate", "train", "convert", "generate", "eval", "report", "quickstart"):
        assert main([verb, "--help"]) == 0
        printed = capsys.readouterr().out
        assert f"example: s1jax {verb}" in printed and ("  out=''  " in printed or verb == "convert")


def test_unknown_verb(capsys):
    assert "unknown verb 'trian'" in fails(["trian"], capsys)


def test_unknown_key_names_the_nearest(home, tmp_path, capsys):
    line = fails(train_arguments(home, tmp_path / "o", "optimizer.learning_rat=1"), capsys)
    assert "unknown key 'optimizer.learning_rat'" in line and "'optimizer.learning_rate'" in line
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "content, says",
    [
        (None, "no.jsonl is neither a file"),
        ("", "is empty"),
        ('{"question": "a", "thinking": "b", "answer": "c"}\n{"question"\n', ":2 is not JSON"),
        ('{"question": "a", "thinking": "b"}\n', "row 1"),
    ],
)
def test_bad_rows_are_named(home, tmp_path, capsys, content, says):
    if content is not None:
        (home / "bad.jsonl").write_text(content)
    line = fails(
        train_arguments(home, tmp_path / "o", "steps=1", rows="bad.jsonl" if content is not None else "no.jsonl"),
        capsys,
    )
    assert says in line and (content is None or "bad.jsonl" in line)
    assert not (tmp_path / "o").exists()


def test_row_over_the_block_names_both_lengths(home, tmp_path, capsys):
    line = fails(train_arguments(home, tmp_path / "o", "steps=1", "data.block=20"), capsys)
    assert "data.block=20" in line and "over_length=drop" in line


def test_mesh_that_does_not_fit(home, tmp_path, capsys):
    line = fails(train_arguments(home, tmp_path / "o", "steps=1", "mesh.data=3"), capsys)
    assert "data=3" in line and "there are 8" in line


def test_batch_that_the_mesh_cannot_make(home, tmp_path, capsys):
    line = fails(train_arguments(home, tmp_path / "o", "steps=1", "global_batch=12"), capsys)
    assert "12" in line and "8" in line


def test_out_of_another_run_is_left_alone(home, tmp_path, capsys):
    assert main(train_arguments(home, tmp_path / "o", "steps=2")) == 0
    metrics = (tmp_path / "o" / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    line = fails(train_arguments(home, tmp_path / "o", "steps=2", "seed=7"), capsys)
    assert "seed was 42, is 7" in line
    assert (tmp_path / "o" / "metrics.jsonl").read_bytes() == metrics


def test_duplicate_ids_and_missing_prompts(home, tmp_path, capsys):
    model = f"model={home}/tokenizer"
    write_jsonl(tmp_path / "twice.jsonl", [{"id": "a", "question": "x"}, {"id": "a", "question": "y"}])
    line = fails(["generate", model, f"prompts={tmp_path}/twice.jsonl", f"out={tmp_path}/g"], capsys)
    assert "'a'" in line and "unique" in line or "twice" in line
    line = fails(["generate", model, f"prompts={tmp_path}/none.jsonl", f"out={tmp_path}/g"], capsys)
    assert "does not exist" in line
    write_jsonl(
        tmp_path / "q.jsonl", [{"id": "a", "question": "x", "answer": "1"}, {"id": "a", "question": "y", "answer": "2"}]
    )
    line = fails(["eval", model, f"benchmark={tmp_path}/q.jsonl", f"out={tmp_path}/e"], capsys)
    assert "'a'" in line


def test_environment_of_a_recipe_is_set_before_jax(tmp_path, monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    (tmp_path / "r.yaml").write_text('env: {XLA_PYTHON_CLIENT_MEM_FRACTION: "0.92"}\n')
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    prepare_environment(str(tmp_path / "r.yaml"))
    assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.92"
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION")


@dataclasses.dataclass(frozen=True)
class FakeRun:
    out: str


@pytest.fixture
def fake(monkeypatch):
    """Puts a verb `fake` in place, which runs what is given."""

    def put(run) -> None:
        module = types.ModuleType("fake_verb")
        module.FakeRun, module.run = FakeRun, run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "fake_verb", module)
        monkeypatch.setitem(cli.VERBS, "fake", cli.Verb("fake_verb", "FakeRun", "", ""))

    return put


def test_sigterm_ends_any_verb_with_75_and_closed_files(fake, tmp_path, capsys):
    def run(config):
        with JsonlWriter(tmp_path / "rows.jsonl") as writer:
            writer.write({"id": 1})
            os.kill(os.getpid(), signal.SIGTERM)
            writer.write({"id": 2})
            raise AssertionError("not ended")

    fake(run)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["fake", "out=x"]) == 75 and "SIGTERM" in capsys.readouterr().err
    assert len(read_jsonl(tmp_path / "rows.jsonl")) == 1 and signal.getsignal(signal.SIGTERM) is before


def test_bad_input_is_one_line_and_other_errors_exit_with_1(fake, capsys):
    def run(config):
        raise BadInput("a\nb") if config.out == "x" else RuntimeError("c")

    fake(run)
    assert fails(["fake", "out=x"], capsys) == "s1jax: a b"
    assert main(["fake", "out=y"]) == 1 and "RuntimeError: c" in capsys.readouterr().err


KEYS = ("step", "loss", "grad_norm", "learning_rate", "tokens")
ONE = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}


def train_command(home, out) -> list[str]:
    arguments = train_arguments(home, out, "steps=200", "save.every=5", "mesh.data=1")
    return [sys.executable, "-m", "s1jax", *arguments]


@pytest.fixture(scope="module")
def undisturbed(home) -> list[list]:
    """What every step of a run that nothing happened to says."""
    out = home / "undisturbed"
    assert subprocess.run(train_command(home, out), env={**os.environ, **ONE}, capture_output=True).returncode == 0
    return [[row[key] for key in KEYS] for row in read_jsonl(out / "metrics.jsonl")]


@pytest.mark.parametrize("sent, code", [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_interrupted_training_goes_on(home, tmp_path, undisturbed, sent, code):
    """Ctrl-C and preemption leave a state from which the same command ends as an undisturbed run does."""
    command, environment = train_command(home, tmp_path / "o"), {**os.environ, **ONE}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "o" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        time.sleep(0.05)
    process.send_signal(sent)
    _, printed = process.communicate()
    assert process.returncode == code, printed
    stopped = len(read_jsonl(metrics))
    assert 3 <= stopped < 200
    shorter = [*command, "save.every=50"]
    assert subprocess.run(shorter, env=environment, capture_output=True).returncode == 0
    found = [[row[key] for key in KEYS] for row in read_jsonl(metrics)]
    assert found == undisturbed and [row[0] for row in found] == list(range(1, 201))


def test_run_folder_says_what_ran(home, tmp_path):
    out = tmp_path / "o"
    assert main(train_arguments(home, out, "steps=1")) == 0
    receipt = json.loads((out / "run.json").read_text())
    assert receipt["seed"] == 42 and "cpu" in receipt["device"].lower() and receipt["packages"]["jax"]
    assert (out / "config.yaml").is_file() and (out / "hf" / "model.safetensors").is_file()


# ---- dispatch, with a verb that does nothing


@dataclasses.dataclass(frozen=True)
class QuietRun:
    out: str = ""
    seed: int = 0


def test_a_recipe_is_the_first_word_without_an_equals_sign(fake, tmp_path, monkeypatch):
    seen = []
    fake(seen.append)
    (tmp_path / "r.yaml").write_text("out: recipe\n")
    assert main(["fake", str(tmp_path / "r.yaml")]) == 0 and main(["fake", str(tmp_path / "r.yaml"), "out=x=y"]) == 0
    assert main(["fake", "out=z"]) == 0
    assert seen == [FakeRun("recipe"), FakeRun("x=y"), FakeRun("z")]


@pytest.mark.parametrize(
    ("verb", "path", "given", "expected"),
    [
        ("fake", "some/where.v2/s1_32b.yaml", [], "runs/s1_32b"),
        ("fake", None, [], "runs/fake"),
        ("fake", None, ["out=mine"], "mine"),
        ("plan", "some/s1_32b.yaml", [], "runs/plan_s1_32b"),
    ],
)
def test_where_a_run_is_left(monkeypatch, tmp_path, verb, path, given, expected):
    module = types.ModuleType("quiet_verb")
    module.QuietRun = QuietRun  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "quiet_verb", module)
    monkeypatch.setitem(cli.VERBS, verb, cli.Verb("quiet_verb", "QuietRun", "", ""))
    if path is not None:
        path = str(tmp_path / path)
        pathlib.Path(path).parent.mkdir(parents=True)
        pathlib.Path(path).write_text("seed: 3\n")
    made = cli.load_config(verb, path, given)
    assert made == QuietRun(expected, 3 if path else 0)


def test_a_config_without_an_out_is_left_as_it_is(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class NoOut:
        seed: int = 1

    module = types.ModuleType("no_out")
    module.NoOut = NoOut  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "no_out", module)
    monkeypatch.setitem(cli.VERBS, "fake", cli.Verb("no_out", "NoOut", "", ""))
    assert cli.load_config("fake", None, ["seed=2"]) == NoOut(2)


def test_what_is_in_the_environment_comes_before_the_recipe(tmp_path, monkeypatch):
    for name in ("JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR", "S1JAX_A", "S1JAX_B"):
        monkeypatch.setenv(name, "before")
        if name != "S1JAX_A":
            monkeypatch.delenv(name)
    (tmp_path / "r.yaml").write_text("env: {S1JAX_A: 1, S1JAX_B: 2, JAX_PLATFORMS: tpu}\n")
    monkeypatch.setenv("XDG_CACHE_HOME", "/there")
    prepare_environment(str(tmp_path / "r.yaml"), "cpu")
    names = ("S1JAX_A", "S1JAX_B", "JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR")
    assert [os.environ[name] for name in names] == ["before", "2", "cpu", "/there/s1jax/xla"]
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    monkeypatch.setenv("JAX_PLATFORMS", "gpu")
    prepare_environment(None, "cpu")
    assert [os.environ[name] for name in names[2:]] == ["gpu", "mine"]
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    prepare_environment(None)
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "/home/someone/.cache/s1jax/xla"
    (tmp_path / "bad.yaml").write_text("env: [a]\n")
    with pytest.raises(BadInput, match="env is \\['a'\\]; it must be names and values"):
        prepare_environment(str(tmp_path / "bad.yaml"))
    (tmp_path / "empty.yaml").write_text("env:\n")
    prepare_environment(str(tmp_path / "empty.yaml"))


def test_which_verbs_stay_on_the_cpu():
    assert {name for name, verb in cli.VERBS.items() if verb.platform} == {"quickstart", "plan"}
    assert {verb.platform for verb in cli.VERBS.values()} == {"cpu", None}


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "s1jax: interrupted; what was finished is saved, the same command goes on"),
        (SystemExit(75), 75, "s1jax: stopped by SIGTERM; what was finished is saved"),
        (SystemExit(3), 3, ""),
        (SystemExit("text"), 1, ""),
        (SystemExit(None), 1, ""),
        (BadInput("one\nline"), 2, "s1jax: one line"),
        (ValueError("x"), 1, "Traceback"),
    ],
)
def test_exit_codes(fake, capsys, raised, code, says):
    def run(config):
        raise raised

    fake(run)
    assert main(["fake", "out=x"]) == code
    printed = capsys.readouterr().err
    assert says in printed and bool(printed) == bool(says)


def test_in_another_thread_signals_are_left_alone(fake):
    codes, seen = [], []
    before = signal.getsignal(signal.SIGTERM)
    fake(lambda config: seen.append(signal.getsignal(signal.SIGTERM)))
    thread = threading.Thread(target=lambda: codes.append(main(["fake", "out=x"])))
    thread.start()
    thread.join()
    assert codes == [0] and seen == [before]


def test_a_reader_that_leaves_is_no_error():
    """`s1jax plan --help | head -1`."""
    command = f"{sys.executable} -u -m s1jax plan --help | head -c 10"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout == "s1jax plan" and not done.stderr
