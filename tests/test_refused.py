"""What a newcomer gets wrong, one case each: exit code 2, one line that names it, and nothing is left or changed."""

import errno
import json
import os
import pathlib
import shutil
import sys

import pytest

from s1jax import __main__ as cli
from s1jax import records

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tools"))

import damaged_starts
from fuzz_starts import WorkBegins, state_of, stopping


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "world"
    folder.mkdir()
    damaged_starts.make_world(folder)
    return folder


@pytest.fixture
def world(template, tmp_path, monkeypatch):
    shutil.copytree(template, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    return tmp_path / "w"


def refused(world, capsys, verb: str, *changes: str, damage=None) -> str:
    """The line of a valid start with these keys after its own; the world is as it was."""
    given = [argument.replace("{w}", str(world)) for argument in damaged_starts.plain(verb, "{w}/new")]
    if damage is not None:
        damage()
    before = state_of(world)
    capsys.readouterr()
    with stopping():
        code = cli.main([verb, *given, *(change.replace("{w}", str(world)) for change in changes)])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("s1jax: ")]
    assert code == 2 and len(lines) == 1, lines
    assert state_of(world) == before
    return lines[0]


@pytest.mark.parametrize(
    "verb, change, words",
    [
        ("train", "out={w}/t.jinja/sub", "t.jinja"),
        ("train", "out=/proc/x", "/proc/x"),
        ("convert", "target=", "target=''"),
        ("convert", "target={w}/hf", "is, holds or lies in source="),
        ("convert", "target={w}/hf/inside", "is, holds or lies in source="),
        ("train", "packing.shapes=0", "key 'packing.shapes' is 0; it must be a whole number from 1"),
        ("train", "packing.multiple=0", "key 'packing.multiple' is 0; it must be a whole number from 1"),
        ("train", "optimizer.learning_rate=-1", "key 'optimizer.learning_rate' is -1; it must be a number from 0"),
        ("train", "optimizer.b1=1.5", "key 'optimizer.b1' is 1.5; it must be a number from 0 below 1"),
        ("train", "optimizer.clip=0", "'optimizer.clip' is 0 (int); it must be a number above 0 or null"),
        ("train", "profile_steps=[-5,1]", "profile_steps"),
        ("train", "profile_steps=[5,0]", "profile_steps"),
        ("train", "eval_every=5", "eval_every=5 has nothing to measure; give eval_rows, or leave it out"),
        ("train", "seed=-1", "key 'seed' is -1; it must be a whole number from 0 to 4294967295"),
        ("train", "optimizer.eps=.nan", "key 'optimizer.eps' is nan"),
        ("generate", 'control.thinking_end=[""]', "thinking_end"),
        ("quickstart", "steps=0", "'steps' is 0 (int); it must be a whole number from 1 or null"),
        ("quickstart", "held_out=0", "'held_out' is 0 (int); it must be a whole number from 1 or null"),
        ("generate", "sampling.n=99999999999999999999", "sampling.n"),
        ("generate", "system=a\0b", "key 'system' is 'a\\x00b', which holds a NUL character"),
        ("generate", "out=a\ud800b", "which holds half a character"),
        ("eval", "budgets=[-1]", "budgets"),
        ("report", "traces=&a [*a]", "holds itself, or is nested more than 50 deep"),
    ],
)
def test_keys(world, capsys, verb, change, words):
    assert words in refused(world, capsys, verb, change)


def edited(path: pathlib.Path, **fields) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"rms_norm_eps": "x"}, "key 'config.json rms_norm_eps' is 'x' (str); it must be a number"),
        ({"rope_parameters": {"rope_theta": -1.0, "rope_type": "default"}}, "config.json rope_theta' is -1.0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers' is 1000000000; it must be a whole number from 1 to 10000"),
        ({"hidden_size": True}, "config.json has hidden_size=True"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
    ],
)
def test_configs_of_models(world, capsys, fields, words):
    path = world / "hf" / "config.json"
    assert words in refused(world, capsys, "generate", damage=lambda: edited(path, **fields))


@pytest.mark.parametrize(
    "text, words",
    [
        ("{% for i in range(10**9) %}x{% endfor %}", "the chat template refuses these messages"),
        ("  \n", "is empty, so no message would reach the model"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_templates(world, capsys, text, words):
    content = text if isinstance(text, bytes) else text.encode()
    assert words in refused(world, capsys, "generate", damage=lambda: (world / "t.jinja").write_bytes(content))


@pytest.mark.parametrize(
    "recipe, words",
    [
        ("seed: 1\nseed: 2\n", "the key 'seed' stands twice"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("env: {A=B: 1}", "env has 'A=B': '1', which no environment can hold"),
        ('env: {A: "x\\0y"}', "env has 'A': 'x"),
        ("env: {A: [1]}", "which no environment can hold"),
        ("env: {XLA_FLAGS: --xla_nothing_of_this_name=1}", "is refused by XLA (unknown: --xla_nothing_of_this_name=1)"),
    ],
)
def test_recipes(world, capsys, recipe, words, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    (world / "r.yaml").write_text(recipe)
    before = state_of(world)
    capsys.readouterr()
    assert cli.main(["train", str(world / "r.yaml")]) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1 and state_of(world) == before


def test_flags_that_xla_knows_are_set(world, monkeypatch):
    """After a trial of their own; what the environment has already is not touched."""
    recipe = world / "r.yaml"
    recipe.write_text("env: {XLA_FLAGS: --xla_cpu_enable_fast_math=false, S1JAX_TRIED: 1}")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.delenv("S1JAX_TRIED", raising=False)
    cli.prepare_environment(str(recipe))
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=false" and os.environ["S1JAX_TRIED"] == "1"
    recipe.write_text("env: {XLA_FLAGS: --nothing}")
    cli.prepare_environment(str(recipe))
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=false"


def test_a_long_error_is_one_line_that_a_terminal_can_show(world, capsys):
    line = refused(world, capsys, "grade", "kind=" + "x\x1b[31m" * 10_000)
    assert len(line) < 2000 and "\x1b" not in line and " ... " in line


def test_a_full_disk_is_one_line_and_what_was_written_stays(world, capsys, monkeypatch):
    """Where rows are appended one by one, as everywhere: the line before the disk was full is there."""
    write, n = records.JsonlWriter.write, []

    def full(self, row):
        n.append(row)
        if len(n) == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.path))
        write(self, row)

    given = [argument.replace("{w}", str(world)) for argument in damaged_starts.plain("grade", "{w}/new")]
    with monkeypatch.context() as patch:
        patch.setattr(records.JsonlWriter, "write", full)
        capsys.readouterr()
        assert cli.main(["grade", *given]) == 2
        said = capsys.readouterr().err
    assert "samples.jsonl cannot be used (No space left on device); give another path, or make room there" in said
    assert "Traceback" not in said and len(records.read_jsonl(world / "new" / "samples.jsonl")) == 2
    assert cli.main(["grade", *given]) == 0 and len(records.read_jsonl(world / "new" / "samples.jsonl")) == 4


def test_other_errors_of_the_system_are_not_the_users(world, capsys, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(cli, "run_verb", broken)
    assert cli.main(["grade", *(a.replace("{w}", str(world)) for a in damaged_starts.plain("grade", "{w}/new"))]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_valid_starts_begin(world):
    for verb in damaged_starts.STARTS:
        with stopping():
            try:
                code = cli.main([verb, *(a.replace("{w}", str(world)) for a in damaged_starts.plain(verb, "{w}/new"))])
            except WorkBegins:
                code = 0
        assert code == 0, verb
        shutil.rmtree(world / "new", ignore_errors=True)
