"""A chat in the terminal, and one prompt as one command: what is shown, what is remembered, what is written."""

import dataclasses
import io
import json
import os
import pathlib
import pty
import re
import subprocess
import sys

import jax
import pytest
from engine_cases import CONFIG
from eval_cases import session, tokenizer_folder
from rich.console import Console

from s1jax import __main__ as cli
from s1jax import records
from s1jax.checkpoint import hf
from s1jax.config import BadInput
from s1jax.control.budget.config import BudgetConfig
from s1jax.control.free import FreeConfig
from s1jax.engine.sampling import SamplingConfig
from s1jax.methods import chat
from s1jax.methods import run as generate
from s1jax.methods.chat import Chat
from s1jax.methods.run import GenerateRun
from s1jax.methods.session import Session
from s1jax.methods.vote import VoteConfig
from s1jax.models.decoder import Decoder
from s1jax.text.tokens import Tokenizer

ROOT = pathlib.Path(__file__).parent.parent.parent
WARM = SamplingConfig(temperature=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tokenizer_folder(tmp_path_factory.mktemp("tokenizer"))


def answers(request):
    return f"thought {request.sample}. ", f"\nAnswer: {request.sample % 2}"


def lines(*typed):
    """`input` over these lines, then the end of the input; an exception among them is raised."""
    left = iter(typed)

    def read() -> str:
        line = next(left, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    return read


def talk(folder, *typed, script=answers, **fields):
    """A chat over a scripted engine: what was shown, the chat, and what its engine was asked."""
    config = GenerateRun(model=folder, **fields)
    own, engines = session(config, script)
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", highlight=False, width=10_000)
    talked = Chat(config, own, console)
    talked.loop(lines(*typed))
    return console.file.getvalue(), talked, engines[0].seen if engines else []  # type: ignore[attr-defined]


def test_a_chat_remembers_answers_without_their_thinking(folder):
    tokenizer = Tokenizer.load(folder)
    shown, talked, seen = talk(folder, "one?", "", "two?", system="S")
    assert [turn["content"] for turn in talked.messages] == ["S", "one?", "Answer: 0", "two?", "Answer: 0"]
    assert tokenizer.decode(seen[1].prompt_ids) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\nAnswer: 0"
        "<|im_end|>\n<|im_start|>user\ntwo?<|im_end|>\n<|im_start|>assistant\n<|im_start|>think"
    )
    assert "\x1b[2mt" in shown and "\x1b[1;33m" in shown, "thinking is dim, what the control puts is marked"
    assert shown.count("tokens of thinking") == 2


def test_commands_of_a_chat(folder):
    shown, talked, seen = talk(
        folder, "/budget 3", "/ignore 2", "one?", "/new", "two?", "/budget off", "/help", "/quit"
    )
    assert [(row.control.budget, row.control.n_ignore) for row in seen] == [(3, 2)] * 2
    assert talked.control == BudgetConfig(thinking_n_ignore=2)
    assert [turn["content"] for turn in talked.messages][0] == "two?" and len(seen[1].prompt_ids) == len(
        seen[0].prompt_ids
    )
    assert "budget 3, ignore 2" in shown and "no limit, ignore 2" in shown and "3 tokens of thinking, ended" in shown
    for command in ("/budget", "/ignore", "/new", "/help", "/quit"):
        assert command in shown


def test_a_model_sends_no_commands_to_the_terminal(folder):
    shown, _, _ = talk(folder, "one?", script=lambda _: ("\x1b]0;title\x07", "\nAnswer: \x1b[2J7"))
    assert "\x1b]0" not in shown and "\x1b[2J" not in shown and "\u241b[2J7" in shown


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("/budget", "'/budget' is no command; /budget N, /ignore N"),
        ("/bugdet 3", "is no command"),
        ("/budget many", "/budget many: give a whole number, or off"),
        ("/budget -3", "/budget -3: give a whole number, or off"),
        ("/budget 5000", "thinking_token_budget is 5000"),
    ],
)
def test_a_command_that_cannot_be_leaves_the_chat_as_it_is(folder, typed, message):
    shown, talked, seen = talk(folder, typed, "one?", sampling=SamplingConfig(max_new_tokens=200))
    assert message in shown and talked.control == BudgetConfig() and len(seen) == 1


def test_a_control_without_a_budget_says_so(folder):
    shown, _, _ = talk(folder, "/budget 3", control=FreeConfig())
    assert "/budget sets control.thinking_token_budget, which control.kind=free lacks" in shown


def test_a_turn_that_is_stopped_or_refused_is_forgotten(folder, monkeypatch):
    shown, talked, _ = talk(folder, "one?", "x" * 3000, KeyboardInterrupt(), "never read")
    assert [turn["content"] for turn in talked.messages] == ["one?", "Answer: 0"] and "prompt " in shown
    run, stops = Session.run, iter([True, False])

    def stopped(self, *arguments, **options):
        if next(stops):
            raise KeyboardInterrupt
        run(self, *arguments, **options)

    monkeypatch.setattr(Session, "run", stopped)
    shown, talked, seen = talk(folder, "two?", "one?")
    assert "[stopped; this turn is forgotten]" in shown and len(seen) == 1
    assert [turn["content"] for turn in talked.messages] == ["one?", "Answer: 0"]


def test_what_a_chat_cannot_have(folder, monkeypatch):
    monkeypatch.setattr(chat, "is_possible", lambda: True)
    for fields, message in [
        ({"out": "x"}, "out=x: a chat is written nowhere; leave it out"),
        ({"sampling": SamplingConfig(n=2, temperature=1.0)}, "sampling.n=2: a chat has one answer to each turn"),
        ({"method": VoteConfig(n=4), "sampling": WARM}, "method.kind=vote"),
    ]:
        config = GenerateRun(model=folder, **fields)
        with pytest.raises(BadInput, match=message):
            generate.run(config, session(config, answers)[0])
    monkeypatch.setattr(chat, "is_possible", lambda: False)
    with pytest.raises(BadInput, match="a chat needs a terminal"):
        generate.run(GenerateRun(model=folder))


# ---- one prompt


def test_a_prompt_is_written_nowhere_unless_out_is_given(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for prompt in ("a?", "b?"):
        config = cli.load_config("generate", None, [f"model={folder}", f"prompt={prompt}"])
        assert generate.run(config, session(config, answers)[0]) is None
        assert capsys.readouterr().out.startswith("thought 0. <|im_start|>answer\nAnswer: 0")
    assert not any(tmp_path.iterdir())
    assert cli.load_config("generate", None, [f"model={folder}", "prompts=x.jsonl"]).out == "runs/generate"
    given = cli.load_config("generate", None, [f"model={folder}", "prompt=a?", "out=o"])
    out = generate.run(given, session(given, answers)[0])
    assert out == pathlib.Path("o") and len(records.read_jsonl("o/completions.jsonl")) == 1


@pytest.mark.parametrize("out", ["", "o"])
def test_all_samples_of_a_prompt_are_shown_in_order(folder, tmp_path, monkeypatch, capsys, out):
    monkeypatch.chdir(tmp_path)
    config = GenerateRun(model=folder, prompt="a?", out=out, sampling=dataclasses.replace(WARM, n=4))
    generate.run(config, session(config, answers)[0])
    shown = capsys.readouterr().out
    parts = shown.split("--- ")[1:]
    assert [part.partition("\n")[0] for part in parts] == [f"{i} of 4" for i in (1, 2, 3, 4)]
    assert all(f"thought {i}. <|im_start|>answer\nAnswer: {i % 2}" in part for i, part in enumerate(parts))
    if out:
        again, engines = session(config, answers)
        generate.run(config, again)
        assert not engines and capsys.readouterr().out == shown, "what is done is shown, not done again"


@pytest.mark.parametrize("out", ["", "o"])
def test_a_vote_on_a_prompt_says_what_won(folder, tmp_path, monkeypatch, capsys, out):
    monkeypatch.chdir(tmp_path)
    for n, said in ((5, "the answer of 3 of 5: 0"), (4, "tied between 0, 1 (2 of 4 each)")):
        fields = {"model": folder, "out": out and f"{out}{n}", "sampling": WARM}
        config = GenerateRun(prompt="a?", method=VoteConfig(n=n), **fields)
        generate.run(config, session(config, answers)[0])
        assert capsys.readouterr().out.splitlines()[-1] == said
        config = GenerateRun(prompt="b?", method=VoteConfig(n=n), **{**fields, "out": out and f"{out}b{n}"})
        generate.run(config, session(config, lambda _: ("t", "\nno idea"))[0])
        assert capsys.readouterr().out.splitlines()[-1] == f"none of {n} gives an answer"


def test_completions_carry_their_question(folder, tmp_path):
    turns = [{"role": "user", "content": "one?"}, {"role": "assistant", "content": "1"}]
    rows = [
        {"id": "a", "question": "a?"},
        {"id": "b", "messages": [{"role": "system", "content": "S"}, *turns, {"role": "user", "content": "two?"}]},
        {"id": "c", "messages": turns},
    ]
    records.write_jsonl(tmp_path / "p.jsonl", rows)
    config = GenerateRun(model=folder, prompts=str(tmp_path / "p.jsonl"), out=str(tmp_path / "o"))
    generate.run(config, session(config, answers)[0])
    lines_ = (tmp_path / "o" / "completions.jsonl").read_text().splitlines()
    found = {row["id"]: row["question"] for row in map(json.loads, lines_)}
    assert found == {"a": "a?", "b": "two?", "c": "one?"}
    assert list(json.loads(lines_[0]))[:3] == ["id", "question", "sample"]


# ---- a terminal


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, arguments: list[str], cwd: pathlib.Path) -> None:
        self._mine, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200", "PYTHONPATH": str(ROOT)}
        environment.pop("NO_COLOR", None)
        command = [sys.executable, "-m", "s1jax", *arguments]
        pipes = {"stdin": theirs, "stdout": theirs, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, cwd=cwd, env=environment, start_new_session=True, **pipes)
        os.close(theirs)

    def until(self, text: str) -> str:
        """What is shown up to and including `text`."""
        seen = b""
        while text.encode() not in seen:
            seen += os.read(self._mine, 65536)
        return seen.decode(errors="replace")

    def type(self, line: str) -> None:
        os.write(self._mine, line.encode() + b"\n")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> pathlib.Path:
    """Random weights."""
    path = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer.load(tokenizer_folder(path / "tokenizer"))
    config = dataclasses.replace(CONFIG, max_position=512)
    weights = jax.jit(lambda key: jax.tree.map(lambda x: x * 2.0, Decoder(config, key)))(jax.random.key(5))
    hf.save(weights, path / "hf", tokenizer_source=tokenizer)
    return path / "hf"


def arguments(model: pathlib.Path) -> list[str]:
    sizes = ["sampling.max_new_tokens=60", "engine.window=8", "mesh.data=1"]
    return ["generate", f"model={model}", "dtype=float32", *sizes]


def test_a_chat_on_a_pseudo_terminal(model, tmp_path):
    """The program as it is started: streamed, dimmed, marked, and nothing written."""
    terminal = Terminal(arguments(model), tmp_path)
    try:
        assert "no limit; /help lists the commands" in terminal.until("> ")
        terminal.type("/budget 12")
        assert "[budget 12]" in terminal.until("> ").replace("\r", "")
        terminal.type("How many?")
        shown = terminal.until("> ")
        assert "\x1b[2m" in shown and "\x1b[1;33m" in shown and "Final Answer:" in re.sub(r"\x1b\[[0-9;]*m", "", shown)
        assert "12 tokens of thinking, ended by budget" in shown
        terminal.type("/new")
        assert "[a new chat]" in terminal.until("> ")
        terminal.type("/nonsense")
        assert "is no command" in terminal.until("> ")
        terminal.type("/quit")
        assert terminal.process.wait() == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
    assert not any(tmp_path.iterdir())


def test_no_warning_of_a_library_reaches_the_terminal(model, tmp_path):
    """Nothing chooses the platform, as after `make test`, which installs the TPU's library."""
    left_out = ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "PYTHONWARNINGS", "XLA_FLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    command = [sys.executable, "-m", "s1jax", *arguments(model), "prompt=How many?"]
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stderr.splitlines()] == ["weights", "compiling,"], done.stderr
