"""Methods, prompts, and the verb `generate` over a scripted engine."""

import dataclasses
import io
import json

import pytest
from eval_cases import ScriptedEngine, session, tokenizer_folder
from rich.console import Console

from s1jax import records
from s1jax.config import BadInput
from s1jax.control.budget.config import BudgetConfig
from s1jax.control.free import FreeConfig
from s1jax.engine.sampling import SamplingConfig
from s1jax.methods import METHODS, vote
from s1jax.methods import run as generate
from s1jax.methods.engines import build_engines
from s1jax.methods.method import Mark
from s1jax.methods.parts import Share, assign_engine
from s1jax.methods.router import answer_text
from s1jax.methods.run import GenerateRun
from s1jax.methods.session import Session
from s1jax.methods.sharing import plan
from s1jax.methods.single import SingleConfig
from s1jax.methods.stream import Pieces, Stream
from s1jax.methods.task import Ask
from s1jax.methods.vote import VoteConfig
from s1jax.parallel.mesh import MeshConfig
from s1jax.text.tokens import Tokenizer

WARM = SamplingConfig(temperature=0.8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tokenizer_folder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder)


def job(own, control=BudgetConfig(), *, id="q", question="q", sampling=WARM, setting=""):  # noqa: B008 (frozen)
    return own.job(id, own.question(question), control, sampling, SingleConfig(), setting=setting)


def marks(*votes):
    return [Mark(vote, vote == "1", 10 * (i + 1), 20) for i, vote in enumerate(votes)]


@pytest.mark.parametrize("name", METHODS)
def test_contract_of_methods(name):
    method = METHODS[name]
    config = method.config()
    assert config.kind == name and method.samples(config, WARM) >= 1
    outcome = method.outcome(marks("1", "1", "2"))
    assert 0 <= outcome.accuracy <= 1
    assert outcome.thinking_tokens == (60 if method.joint else 20)
    assert outcome.total_tokens == (60 if method.joint else 20)
    assert method.outcome(marks("1")) == METHODS["single"].outcome(marks("1"))


def test_vote_is_the_majority_with_ties_shared_and_blanks_silent():
    assert METHODS["vote"].outcome(marks("1", "2", "1")).accuracy == 1.0
    assert METHODS["vote"].outcome(marks("1", "2")).accuracy == 0.5
    assert METHODS["vote"].outcome(marks("1", None, None)).accuracy == 1.0
    assert METHODS["vote"].outcome(marks(None, None)).accuracy == 0.0
    assert METHODS["single"].outcome(marks("1", None, "2", "2")).accuracy == 0.25
    assert vote.winners(["b", "a", "a", "b", None]) == ("b", "a") and vote.winners([None]) == ()
    mixed = [Mark("a", is_right, 1, 2) for is_right in (True, False, True, False)]
    assert METHODS["vote"].outcome(mixed).accuracy == 0.5, "voters of one answer that are graded apart: their mean"


@pytest.mark.parametrize(
    "method, sampling, message",
    [
        (VoteConfig(), SamplingConfig(n=4, temperature=1.0), "sampling.n=4 says nothing to method.kind=vote"),
        (VoteConfig(), SamplingConfig(), "16 samples at sampling.temperature=0 are 16 copies"),
        (SingleConfig(), SamplingConfig(n=0), "0 samples of each prompt"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(method, sampling, message):
    with pytest.raises(BadInput, match=message):
        METHODS[method.kind].samples(method, sampling)


def test_prompt_ids_end_with_the_header_or_go_on_from_a_prefix(folder, tokenizer):
    config = GenerateRun(model=folder, prompt="x", system="S")
    own = Session(config, build_engines)
    text = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<|im_start|>think"
    assert tokenizer.decode(own.prompt_ids(own.question("q"), BudgetConfig())) == text
    assert tokenizer.decode(own.prompt_ids(own.question("q"), FreeConfig())) == text.removesuffix("<|im_start|>think")
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "So, "}]
    text = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nSo, "
    assert tokenizer.decode(own.prompt_ids(chat, FreeConfig())) == text


def test_chat_template_of_a_file(folder, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    own = Session(GenerateRun(model=folder, prompt="x", chat_template=str(file)), build_engines)
    assert own.tokenizer.decode(own.prompt_ids(own.question("q"), FreeConfig())) == "[q]"
    with pytest.raises(BadInput, match="nowhere.jinja does not exist"):
        Session(GenerateRun(model=folder, prompt="x", chat_template="nowhere.jinja"), build_engines)


@pytest.mark.parametrize(
    "control, stops, thinking, answer, expected",
    [
        (BudgetConfig(), (), "let me see", "\nAnswer: 3", "\nAnswer: 3"),
        (BudgetConfig(thinking_token_budget=4), (), "let me see", " 3", "\nFinal Answer: 3"),
        (BudgetConfig(preset="think_tags"), (), "let me see", "It is 3.", "It is 3."),
        (BudgetConfig(preset="think_tags", thinking_token_budget=4), (), "let me see", "3", "3"),
        (
            BudgetConfig(preset="qwen3", forced_end="I must stop.\n</think>\n\n", thinking_token_budget=4),
            (),
            "let me see",
            "3",
            "3",
        ),
        (FreeConfig(), (), "", "plain 3", "plain 3"),
        (BudgetConfig(thinking=False), (), "", "\n3", "\n3"),
        (BudgetConfig(), ("STOP",), "x", "3 STOP 4", "3 "),
    ],
)
def test_answer_text_is_what_follows_thinking(folder, tokenizer, control, stops, thinking, answer, expected):
    config = GenerateRun(model=folder, prompt="x")
    own, _ = session(config, lambda _: (thinking, answer))
    got = []
    own.run([job(own, control=control)], lambda _job, _ask, completion: got.append(completion))
    text = answer_text(got[0], tokenizer, control, stops)
    assert text.removesuffix("<|im_end|>") == expected


def test_rows_are_dealt_to_engines_by_a_hash_of_their_id(folder):
    made = []

    def make(_, tokenizer, controls, most_rows):
        assert most_rows == 40
        made.extend(ScriptedEngine(tokenizer, lambda _: ("t", "a")) for _ in range(3))
        return made

    own = Session(GenerateRun(model=folder, prompt="x"), make, Share(0, 3, 3))
    warm = dataclasses.replace(WARM, n=2)
    jobs = [job(own, id=str(i), question=f"{i}", sampling=warm) for i in range(20)]
    done = []
    own.run(jobs, lambda _, ask, completion: done.append((ask, completion)))
    assert sorted((a.id, a.sample) for a, _ in done) == sorted((j.id, s) for j in jobs for s in (0, 1))
    assert all((a.id, a.sample, a.prompt_ids) == (c.id, c.sample, c.prompt_ids) for a, c in done)
    for number, engine in enumerate(made):
        assert engine.seen and {assign_engine(request.id, 3) for request in engine.seen} == {number}


def test_a_row_that_cannot_fit_is_refused_before_any_work(folder):
    own, engines = session(GenerateRun(model=folder, prompt="x"), lambda _: ("t", "a"))
    long = BudgetConfig(thinking_token_budget=5000)
    jobs = [job(own, id=str(i), control=c) for i, c in enumerate([BudgetConfig(), long])]
    with pytest.raises(BadInput, match="prompt '1': .*5000"):
        own.run(jobs, lambda *_: None)
    assert not engines[0].seen


@pytest.mark.parametrize(
    "mesh, message",
    [
        (MeshConfig(data=1, fsdp=2), "decoding shards over mesh.tensor"),
        (MeshConfig(data=1, fsdp=1, context=2), "decoding shards over mesh.tensor"),
        (MeshConfig(data=3, fsdp=1, tensor=4), "mesh.data=3 copies of mesh.tensor=4 devices do not fit 8"),
    ],
)
def test_meshes_that_cannot_decode_are_refused(folder, tmp_path, mesh, message):
    with pytest.raises(BadInput, match=message):
        generate.run(GenerateRun(model=folder, prompt="x", mesh=mesh, out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def answers(request):
    return "I think. " * (request.sample + 1), f"\nAnswer: {len(request.id) + request.sample % 2}"


def test_generate_writes_each_row_and_goes_on_after_an_interruption(folder, tmp_path):
    path = tmp_path / "prompts.jsonl"
    records.write_jsonl(path, [{"id": "a" * i, "question": f"{i}?", "thinking_token_budget": 9 * i} for i in (1, 2, 3)])
    config = GenerateRun(
        model=folder, prompts=str(path), out=str(tmp_path / "out"), sampling=SamplingConfig(n=3, temperature=1.0)
    )
    own, engines = session(config, answers, dies_after=4)
    with pytest.raises(KeyboardInterrupt):
        generate.run(config, own)
    file = tmp_path / "out" / "completions.jsonl"
    assert len(records.read_jsonl(file)) == 4
    with file.open("a") as torn:
        torn.write('{"id": "aaa", "sam')
    own, engines = session(config, answers)
    generate.run(config, own)
    assert len(engines[0].seen) == 5
    rows = [records.to_completion(row) for row in records.read_jsonl(file)]
    assert sorted((row.id, row.sample) for row in rows) == [("a" * i, s) for i in (1, 2, 3) for s in range(3)]
    assert all(row.thinking_tokens <= 9 * len(row.id) for row in rows)
    own, engines = session(config, answers)
    generate.run(config, own)
    assert not engines  # nothing is missing: the model is not even read


CHANGED = "prompts.jsonl: the content has changed .*since the run in out=.*out was begun; put back"


def test_generate_refuses_a_file_that_answers_other_prompts(folder, tmp_path):
    def config(question):
        path = tmp_path / "prompts.jsonl"
        records.write_jsonl(path, [{"id": "a", "question": question}])
        return GenerateRun(model=folder, prompts=str(path), out=str(tmp_path / "out"))

    generate.run(config("1?"), session(config("1?"), answers)[0])
    with pytest.raises(BadInput, match=CHANGED):
        generate.run(config("2?"), session(config("2?"), answers)[0])
    for changed in ({"thinking_token_budget": 9}, {"temperature": 1.0}, {"seed": 5}):
        same = config("1?")
        records.write_jsonl(tmp_path / "prompts.jsonl", [{"id": "a", "question": "1?", **changed}])
        with pytest.raises(BadInput, match=CHANGED):
            generate.run(same, session(same, answers)[0])
    file = tmp_path / "out" / "completions.jsonl"
    written = file.read_text()
    config("1?")
    elsewhere = (tmp_path / "prompts.jsonl").rename(tmp_path / "moved.jsonl")
    moved = GenerateRun(model=folder, prompts=str(elsewhere), out=str(tmp_path / "out"))
    own, engines = session(moved, answers)
    generate.run(moved, own)
    assert not engines and file.read_text() == written  # a name is no content
    file.write_text(file.read_text() * 2)
    with pytest.raises(BadInput, match="sample 0 of 'a' is there twice"):
        generate.run(config("1?"), session(config("1?"), answers)[0])


@pytest.mark.parametrize(
    "row, message",
    [
        ({"temperature": 0}, "3 samples at sampling.temperature=0 are 3 copies"),
        ({"max_new_tokens": 0}, "sampling.max_new_tokens is 0; give a whole number from 1, or null"),
        ({"top_p": 2}, "sampling.top_p is 2.0"),
        ({"thinking_token_budget": 99}, "leaves .* but thinking_token_budget is 99"),
        ({"answer_token_budget": 0}, "control.answer_token_budget is 0"),
        ({"thinking": "a trace"}, "thinking.* is 'a trace'"),
    ],
)
def test_rows_that_cannot_run_are_refused_before_a_folder_is_begun(folder, tmp_path, row, message):
    path = tmp_path / "prompts.jsonl"
    records.write_jsonl(path, [{"id": "fine", "question": "a"}, {"id": "bad", "question": "b", **row}])
    config = GenerateRun(
        model=folder,
        prompts=str(path),
        out=str(tmp_path / "out"),
        sampling=SamplingConfig(n=3, temperature=1.0, max_new_tokens=80),
    )
    with pytest.raises(BadInput, match=message):
        generate.run(config, session(config, answers)[0])
    assert not (tmp_path / "out").exists()


def test_generate_votes(folder, tmp_path):
    path = tmp_path / "prompts.jsonl"
    records.write_jsonl(path, [{"id": "abc", "question": "q?"}])
    fields = {"model": folder, "prompts": str(path), "out": str(tmp_path / "out"), "sampling": WARM}
    config = GenerateRun(method=VoteConfig(n=5), **fields)
    generate.run(config, session(config, answers)[0])
    (row,) = records.read_jsonl(tmp_path / "out" / "votes.jsonl")
    completions = [records.to_completion(r) for r in records.read_jsonl(tmp_path / "out" / "completions.jsonl")]
    assert row["answer"] == "3" and row["votes"] == ["3", "4", "3", "4", "3"] and row["tied"] == []
    assert row["total_tokens"] == sum(len(c.token_ids) for c in completions)
    assert row["thinking_tokens"] == sum(c.thinking_tokens for c in completions)
    even = GenerateRun(method=VoteConfig(n=4), **{**fields, "out": str(tmp_path / "even")})
    generate.run(even, session(even, answers)[0])
    (row,) = records.read_jsonl(tmp_path / "even" / "votes.jsonl")
    assert row["answer"] is None and sorted(row["tied"]) == ["3", "4"]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, "one of the two"),
        ({"prompt": "q", "prompts": "f"}, "one of the two"),
        ({"prompt": "q", "answers": "maths"}, "answers='maths' is not known"),
    ],
)
def test_generate_needs_one_source_of_prompts(folder, tmp_path, fields, message):
    with pytest.raises(BadInput, match=message):
        generate.run(GenerateRun(model=folder, out=str(tmp_path), **fields))


def test_one_prompt_is_shown_whole_while_it_is_written(folder, tokenizer, tmp_path, capsys):
    config = GenerateRun(model=folder, prompt="q?", out=str(tmp_path / "out"))
    generate.run(config, session(config, lambda _: ("thinking \u00e9t\u00e9 aloud", "\nAnswer: \u00fc3"))[0])
    shown = capsys.readouterr().out
    assert shown.startswith("thinking \u00e9t\u00e9 aloud<|im_start|>answer\nAnswer: \u00fc3") and "\ufffd" not in shown
    assert "ended by natural" in shown
    row = records.to_completion(json.loads((tmp_path / "out" / "completions.jsonl").read_text()))
    assert shown.startswith(row.text)
    own, engines = session(config, answers)
    generate.run(config, own)
    assert not engines and capsys.readouterr().out == shown  # what is done is shown, not done again


@pytest.mark.parametrize("preset", ["s1", "think_tags"])
def test_thinking_is_dim_and_forced_ids_are_marked(tokenizer, preset):
    control = BudgetConfig(preset=preset)
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", highlight=False)
    stream = Stream(tokenizer, control, console)
    thought, drawn = tokenizer.encode("hm, hm"), tokenizer.encode(" an answer of some length")
    end = tokenizer.encode_markup(control.markers.answer_start if preset == "s1" else "</think>")
    ids = [*thought, *end, *drawn]
    forced = [preset == "s1" and len(thought) <= i < len(thought) + len(end) for i in range(len(ids))]
    for n in range(1, len(ids)):
        n_end = len(thought) + len(end) * (preset != "s1")
        stream.show(None, ids[:n], forced[:n], min(n, n_end))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[2mh" in text and "\x1b[2m an" not in text
    assert ("\x1b[1;33m" in text) == (preset == "s1")


def ask(setting="", id="q", sample=0, temperature=0.8, control=None, **budget):
    config = BudgetConfig(**budget) if control is None else control
    return Ask(setting, id, sample, 0, (1, 2), config, SamplingConfig(temperature=temperature))


def test_rows_that_share_their_draws_are_computed_once():
    budgets = [ask(f"b{b}", thinking_token_budget=b) for b in (8, 64, 16)]
    same, none = ask("again", thinking_token_budget=16), ask("no limit")
    (tree,) = plan([*budgets, same, none])
    assert tree.leader == (none,)
    assert tree.forks == ((budgets[0],), (budgets[2], same), (budgets[1],))
    apart = [
        ask(thinking_token_budget=8),
        ask(thinking_token_budget=16, thinking_n_ignore=1),
        ask(sample=1, thinking_token_budget=32),
        ask(id="r"),
        ask(temperature=0.9),
        ask(thinking=False),
        ask(control=FreeConfig()),
        ask(thinking_token_budget=8, algorithm="readme"),
        ask(thinking_token_budget=16, algorithm="readme"),
    ]
    assert [tree.leader for tree in plan(apart)] == [(one,) for one in apart]
    assert [len(tree.leader) for tree in plan([*apart, *apart])] == [2] * len(apart)


def test_more_budgets_than_a_row_can_pause_at_are_several_rows():
    trees = plan([ask(thinking_token_budget=b) for b in range(20)])
    assert [tree.leader[0].control.thinking_token_budget for tree in trees] == [19, 10, 1]
    assert [len(tree.forks) for tree in trees] == [8, 8, 1]


def test_a_control_that_pauses_by_itself_is_refused():
    with pytest.raises(BadInput, match="control.pause_at=.3. is for programs that fork"):
        plan([ask(thinking_token_budget=8, pause_at=(3,))])


def swept(own, *budgets) -> dict:
    done = {}
    jobs = [job(own, BudgetConfig(thinking_token_budget=budget), setting=str(budget)) for budget in budgets]
    own.run(jobs, lambda job, _, completion: done.update({job.setting: completion}))
    return done


def test_a_sweep_forks_where_a_budget_is_spent_and_shares_the_rest(folder):
    own, engines = session(GenerateRun(model=folder, prompt="x"), lambda _: ("t" * 20, "\nAnswer: 3"))
    done = swept(own, 0, 10, 30, 40, None)
    assert [done[name].thinking_tokens for name in ("0", "10", "30", "40", "None")] == [0, 10, 20, 20, 20]
    assert done["30"] is done["40"] is done["None"] and engines[0].n_forks == 2
    reasons = [done[name].thinking_finish_reason for name in ("0", "10", "30")]
    assert reasons == ["budget", "budget", "natural"]


def test_a_budget_that_is_all_there_is_room_for_is_a_row_of_its_own(folder):
    own, engines = session(GenerateRun(model=folder, prompt="x"), lambda _: ("t" * 3000, " 3"))
    most = swept(own, None)["None"].thinking_tokens
    done = swept(own, most, None)
    assert {name: row.thinking_tokens for name, row in done.items()} == {str(most): most, "None": most}
    assert len(engines) == 1 and engines[0].n_forks == 0


def test_a_character_split_by_a_forced_token_is_whole(tokenizer):
    """Its bytes lie on both sides of a border between drawn and forced tokens, and between thinking and answer."""
    whole = tokenizer.encode("a\u00fcb")
    assert len(whole) == 4  # every byte is a token here
    stream, pieces = Pieces(tokenizer, BudgetConfig(preset="think_tags")), []
    forced, thinking = [False, False, True, True], 2
    for n in range(1, 5):
        pieces += stream.grown([*whole[:n], *whole[:1] * 16], [*forced[:n], *[False] * 16], min(n, thinking))
    assert "".join(piece.text for piece in pieces) == "a\u00fcb" and all("\ufffd" not in p.text for p in pieces)
    assert [(p.text, p.is_thinking, p.is_forced) for p in pieces][-1] == ("b", False, True)
