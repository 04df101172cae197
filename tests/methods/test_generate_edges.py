"""Edges of `generate`: what overrides what, seeds, more samples later, what is shown and what is on disk."""

import io

import pytest
from disk_cases import Disk
from eval_cases import session, tokenizer_folder
from rich.console import Console

from s1jax import records
from s1jax.config import BadInput
from s1jax.control.budget.config import BudgetConfig
from s1jax.engine.sampling import SamplingConfig
from s1jax.methods import prompts
from s1jax.methods import run as generate
from s1jax.methods.method import refuse_copies
from s1jax.methods.parts import Parts, Share, files_of
from s1jax.methods.run import GenerateRun
from s1jax.methods.stream import Stream
from s1jax.records import Completion
from s1jax.text.tokens import byte_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tokenizer_folder(tmp_path_factory.mktemp("tokenizer"))


def answers(request):
    return f"thinking of {request.id}", f"\nAnswer: {3 + request.sample % 2}"


def completions(out) -> list[Completion]:
    return [records.to_completion(row) for row in records.read_jsonl(out / "completions.jsonl")]


def test_a_field_of_its_own_comes_before_one_of_the_group():
    row = {
        **{
            "question": "q",
            "control": {"thinking_token_budget": 3, "thinking_n_ignore": 2},
            "thinking_token_budget": 5,
        },
        **{"sampling": {"temperature": 0.1, "top_k": 4}, "temperature": 0.9},
    }
    prompt = prompts.prompt_of(row, "row 1")
    assert prompt.control == {"thinking_token_budget": 5, "thinking_n_ignore": 2}
    assert prompt.sampling == {"temperature": 0.9, "top_k": 4}


def test_a_chat_has_one_system_turn():
    """Its own; else that of its row; else the run's."""
    own = [{"role": "system", "content": "own"}, {"role": "user", "content": "q"}]
    assert prompts.prompt_of({"messages": own}, "", "run's").messages == tuple(own)
    assert prompts.prompt_of({"messages": own, "system": "row's"}, "", "run's").messages == tuple(own)
    of_run = prompts.prompt_of({"messages": own[1:]}, "", "run's").messages
    assert of_run == ({"role": "system", "content": "run's"}, own[1])
    assert prompts.prompt_of({"messages": own[1:]}, "").messages == (own[1],)
    assert prompts.prompt_of({"question": "q", "system": "row's"}, "", "run's").messages[0]["content"] == "row's"


def test_a_row_may_have_the_seed_zero(folder, tmp_path):
    rows = [{"id": "own", "question": "a", "seed": 0}, {"id": "run's", "question": "b"}]
    records.write_jsonl(tmp_path / "prompts.jsonl", rows)
    config = GenerateRun(model=folder, prompts=str(tmp_path / "prompts.jsonl"), out=str(tmp_path / "out"), seed=7)
    generate.run(config, session(config, answers)[0])
    assert {row.id: row.seed for row in completions(tmp_path / "out")} == {"own": 0, "run's": 7}


def test_more_samples_later_are_added_to_those_that_are_there(folder, tmp_path):
    records.write_jsonl(tmp_path / "prompts.jsonl", [{"id": name, "question": name} for name in "ab"])
    out = tmp_path / "out"
    made = []
    for n in (1, 3, 2):
        sampling = SamplingConfig(n=n, temperature=1.0)
        config = GenerateRun(model=folder, prompts=str(tmp_path / "prompts.jsonl"), out=str(out), sampling=sampling)
        try:
            own, engines = session(config, answers)
            generate.run(config, own)
        except BadInput as error:  # the number may belong to a run's identity: then it says so
            assert "sampling.n was 1, is" in str(error)
            return
        made.append(sum(len(engine.seen) for engine in engines))
    assert made == [2, 4, 0] and sorted((row.id, row.sample) for row in completions(out)) == [
        (name, sample) for name in "ab" for sample in range(3)
    ]


def test_samples_that_can_differ_and_copies():
    for n, temperature in ((1, 0.0), (2, 0.5), (1, 1.0)):
        assert refuse_copies(n, SamplingConfig(temperature=temperature)) == n
    for n, temperature, says in ((0, 1.0, "0 samples"), (2, 0.0, "2 samples .* are 2 copies of one")):
        with pytest.raises(BadInput, match=says):
            refuse_copies(n, SamplingConfig(temperature=temperature))


def completion(ids: list[int], thinking: int) -> Completion:
    forced, text = (False,) * len(ids), byte_tokenizer().decode(ids)
    return Completion("q", 0, 0, (1,), tuple(ids), forced, thinking, thinking, 3, 9, "natural", "stop", text)


@pytest.mark.parametrize("end", ["</think>", "the end of all that is thought"])
def test_what_is_taken_back_was_never_shown(end):
    """A half delimiter is drawn, then taken back and replaced: what stands on the terminal in the end is the text."""
    tokenizer = byte_tokenizer()
    console = Console(file=io.StringIO(), force_terminal=False, width=10_000, highlight=False)
    stream = Stream(tokenizer, BudgetConfig(thinking_end=(end,)), console)
    thought = tokenizer.encode("let me see, this is how it goes")
    final = tokenizer.encode("let me see, this is how it goes on and on </think> 42")
    for n in range(1, len(thought) + 1):
        stream.show(None, thought[:n], [False] * n, n)
    for n in range(1, len(end)):  # a token is a byte
        half = [*thought, *tokenizer.encode(end[:n])]
        stream.show(None, half, [False] * len(half), len(half))
    for n in range(len(thought), len(final) + 1):
        stream.show(None, final[:n], [False] * n, min(n, 40))
    stream.finish(completion(final, 40))
    shown, _, account = console.file.getvalue().rpartition("\n[")  # type: ignore[attr-defined]
    assert shown.strip("\n") == tokenizer.decode(final)
    assert account.startswith("40 ") and "ended by natural; 3 " in account


def row(id: str, sample: int) -> Completion:
    return Completion(id, sample, 0, (1,), (2,), (False,), 0, 0, 1, 2, None, "stop", f"text of {id}")


def test_parts_are_merged_on_disk_before_they_go(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    keys = [(f"q{i}", 0) for i in range(9)]
    with Parts(path, Share(0, 3, 3)) as several:
        for key in keys:
            several.write(row(*key))
        parts = {part.name for part in files_of(path)} - {path.name}
        size = sum(part.stat().st_size for part in files_of(path))
        disk = Disk(monkeypatch)
        assert several.merge(keys)
    monkeypatch.undo()
    events = [event for event in disk.take() if event[0] != "remove" or event[1] in parts]
    renamed = next(i for i, event in enumerate(events) if event[0] == "rename" and event[2] == path.name)
    assert ("sync", events[renamed][1], size) in events[:renamed], "all rows are on disk before they have their name"
    assert {event[1] for event in events[renamed + 1 :] if event[0] == "remove"} == parts, "and then the parts go"
    assert not any(event[0] == "remove" for event in events[:renamed])
