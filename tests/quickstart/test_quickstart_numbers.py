"""The quickstart's task by seed, and the configs of its road: what a change of one number would change."""

import dataclasses
import hashlib
import json
import random

import pytest

from s1jax.models.decoder import DecoderConfig
from s1jax.quickstart import run, task
from s1jax.quickstart.recipe import TeacherHabits, Words
from s1jax.quickstart.run import QuickstartRun
from s1jax.quickstart.tokenizer import train_tokenizer
from s1jax.records import Question, read_jsonl


def digest(data) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


@pytest.fixture(scope="module")
def held_out() -> list[Question]:
    return task.questions(2, 100, held_out=True)


def test_questions_of_a_seed(held_out):
    asked = [(question.text.removeprefix("How many r in "), question.answer) for question in task.questions(0, 3)]
    assert asked == [
        ("1e 2w 3s 4a 5w 6s 7t", "0"),
        ("1y 2r 3w 4b 5e 6e 7r 8r 9e 10b 11r 12r", "5"),
        ("1r 2r 3r 4r 5r 6r", "6"),
    ]
    assert [task.word_of(question.text) for question in held_out[:2]] == ["ywrrrryw", "epetpsara"]
    assert digest([dataclasses.asdict(question) for question in task.questions(1, 500)]) == "bba405400b93b860"
    assert digest([dataclasses.asdict(question) for question in held_out]) == "d9a904893745c938"


def test_traces_of_a_seed():
    rng = random.Random(4)
    found = [(task.word_of(question.text), *task.trace(question, rng)) for question in task.questions(3, 6)]
    assert found[1:4] == [
        ("rrrre", "2:1 4:2 5:2", "Final Answer: 2", False),
        ("ywrre", "2:0 4:1", "Final Answer: 1", False),
        ("eatpeysty", "2:0 4:0 6:0 8:0 9:0", "Final Answer: 0", True),
    ]


def test_pool_and_corpus_of_a_seed(held_out):
    assert digest(task.pool(1, 600, held_out)) == "4265205a9973bcc9"
    assert digest(task.pool(2, 600, held_out)) == "82d5777dccc31319"
    assert digest(list(task.corpus(1, 200))) == "3abe6d29075f9616"


def test_a_question_is_looked_for_ten_thousand_times(monkeypatch):
    """All words of two letters `rr`: one question, found in the first draw or never."""
    monkeypatch.setattr(task, "MISSES", 5)
    drawn = []
    words = iter(["rr", *["rr"] * 5, "ra", *["rr"] * 5, "rb", *["rr"] * 50])
    monkeypatch.setattr(task, "_draw_word", lambda rng, words_: drawn.append(0) or next(words))
    monkeypatch.setattr(task, "is_held_out", lambda text: False)
    with pytest.raises(task.BadInput, match="of 9 questions asked for, only 3 can be found; ask for fewer"):
        task.questions(0, 9)
    assert len(drawn) == 13 + 6, "five misses in a row are allowed, each time anew"


def test_words_at_their_edges():
    rng = random.Random(0)
    all_doubled = Words(shortest=6, longest=6, doubled=(0.0, 0.0, 0.0, 0.0, 1.0), most=6)
    assert task._draw_word(rng, all_doubled) == "rrrrrr", "more pairs than there are: all of them"
    single = Words(shortest=1, longest=1, single=1.0)
    assert {task._draw_word(rng, single) for _ in range(20)} == {"r"}
    none = Words(shortest=12, longest=12, doubled=(0.0, 0.0, 0.0, 1.0), single=1.0, most=9)
    words = {task._draw_word(rng, none) for _ in range(200)}
    assert {len(word) for word in words} == {12} and {word.count("r") for word in words} == {9}


def test_a_teacher_stops_as_often_as_it_says():
    """A word of two pairs is checked by one Wait: `stop[0]`, then `stop_checked`, at most so many."""
    question = task.question_about("rrab")
    sure = TeacherHabits(stop=(0.0, 1.0, 1.0), stop_checked=0.0, most_waits=3, hasty=0.0)
    trace = "2:1 4:1\nWait 2:2 4:2\nWait all:2\nWait all:2"
    assert task.trace(question, random.Random(0), sure) == (trace, "Final Answer: 2", True)
    checked = dataclasses.replace(sure, stop_checked=1.0)
    assert task.trace(question, random.Random(0), checked)[0] == "2:1 4:1\nWait 2:2 4:2"
    at_once = dataclasses.replace(sure, stop=(1.0, 0.0, 0.0))
    assert task.trace(question, random.Random(0), at_once) == ("2:1 4:1", "Final Answer: 1", False)
    longer = task.question_about("rrrrrrrrrrrr")
    assert task.trace(longer, random.Random(0), sure)[0].count("Wait") == 1, "stop[1], pairs being left"
    hasty = dataclasses.replace(sure, hasty=1.0)
    cut = {task.trace(longer, random.Random(seed), hasty)[0] for seed in range(60)}
    first = "2:1 4:2 6:3 8:4 10:5 12:6".split()
    assert cut == {" ".join(first[:n]) for n in range(1, 6)}, "it breaks off before the last pair"


def test_the_solver_is_right_about_short_words():
    words = ["ra", "rab", "rabb"]
    assert task.solver([task.question_about(word) for word in words]) == [
        {"one look": 1.0},
        {"one look": 1.0},
        {"one look": 0.0},
    ]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The questions and the tokenizer of a run with seed 3."""
    out = tmp_path_factory.mktemp("quickstart")
    config = QuickstartRun(seed=3, pool=90, held_out=20, out=str(out))
    run._prepare(config, out)
    return config, out


def test_a_seed_makes_questions_of_its_own(prepared):
    config, out = prepared
    held_out = task.questions(3002, 20, held_out=True)
    assert read_jsonl(out / "held_out.jsonl") == [
        {"id": q.id, "question": q.text, "answer": q.answer} for q in held_out
    ]
    assert read_jsonl(out / "pool.jsonl") == task.pool(3001, 90, held_out)
    first = (out / "tokenizer" / "tokenizer.json").read_text()
    assert len(json.loads(first)["model"]["vocab"]) == 520
    (out / "pool.jsonl").write_text("kept")
    run._prepare(config, out)
    assert (out / "pool.jsonl").read_text() == "kept", "what is there is not made again"
    assert task.RECIPE.pool == 12_000 and task.RECIPE.held_out == 1_000


def test_the_tokenizer_ends_with_both_of_its_ends():
    made = train_tokenizer(task.corpus(1, 300))
    ids = {made.added[text] for text in ("<|im_end|>", "<|endoftext|>")}
    assert made.eos_ids == ids
    for text in (" 3r", " 12:6", " all:4", "Wait", "2:1", "\n"):
        assert len(made.encode(text)) == 1, text


def test_the_training_of_the_road(prepared):
    config, out = prepared
    made = run.train_config(config, out)
    shape = DecoderConfig(
        *("qwen2",), D=64, K=2, G=2, H=16, F=192, V=520, L=3, rope_theta=1e4, max_position=256, tied=True, qkv_bias=True
    )
    assert made.model.init == shape
    assert (made.data.rows, made.data.block, made.data.answer_prefix) == (str(out / "curate" / "rows.jsonl"), 57, None)
    assert (made.steps, made.global_batch, made.micro_batch, made.seed) == (2000, 32, 32, 3)
    optimizer = made.optimizer
    assert (optimizer.learning_rate, optimizer.warmup_steps, optimizer.b2, optimizer.weight_decay) == (
        *(4e-3, 100, 0.98, 0.1),
    )
    assert (made.loss.norm, made.loss.chunk, made.packing.enabled, made.packing.shapes) == ("token", 0, False, 1)
    assert (made.dtype, made.remat, made.packing.multiple, made.mesh) == ("float32", "none", 1, run.ONE_DEVICE)
    assert (made.save.every, made.save.keep, made.save.dtype) == (400, 1, "float32")
    assert (made.tokenizer, made.out) == (str(out / "tokenizer"), str(out / "train"))
    short = run.train_config(dataclasses.replace(config, steps=40), out)
    assert (short.steps, short.optimizer.warmup_steps) == (40, 20)


def test_the_curation_and_the_evaluation_of_the_road(prepared):
    config, out = prepared
    made = run.curate_config(config, out)
    assert made.stages == ("deduplicate", "quality", "difficulty", "decontaminate", "diversity")
    source, against = made.sources[0], made.decontaminate
    assert (source.kind, source.path, source.answer_kind) == ("rows", str(out / "pool.jsonl"), "integer")
    assert (against.words, against.letters, against.symbols) == (None, True, None)
    assert against.against[0].path == str(out / "held_out.jsonl")
    assert (made.diversity.total, made.seed, made.out) == (None, 3, str(out / "curate"))
    asked = run.eval_config(config, out)
    assert asked.budgets == (1, 2, 3, 4, 5, 6, 8) and asked.ignores == (0, 1, 2, 4)
    assert (asked.votes.n, asked.votes.temperature) == (8, 0.8) and asked.control.answer_token_budget == 8
    assert (asked.model, asked.benchmark, asked.out) == tuple(
        str(out / name) for name in ("hf", "held_out.jsonl", "eval")
    )
    assert (asked.grader, asked.seed, asked.dtype) == ("integer", 3, "float32")


def test_what_is_said_in_the_end(tmp_path, capsys):
    figures = {"control": (1.0, 1.0, 1.0), "scaling": (2.5, 1.25, 3.75), "performance": (0.75, 0.5, 0.875)}
    scaling = {name: dict(zip(("value", "low", "high"), figure, strict=True)) for name, figure in figures.items()}
    (tmp_path / "scaling.json").write_text(json.dumps(scaling))
    run._show(tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == [
        "Control      1.000  [1.000, 1.000]",
        "Scaling      2.500 points per doubling  [1.250, 3.750]",
        "Performance  0.750  [0.500, 0.875]",
    ]
    scaling["scaling"] = {"value": None, "low": None, "high": None, "reason": "one point"}
    (tmp_path / "scaling.json").write_text(json.dumps(scaling))
    run._show(tmp_path)
    assert "Scaling      none: one point" in capsys.readouterr().out


def test_stages_are_timed_one_by_one(monkeypatch, capsys):
    clock = iter([10.0, 12.5, 20.0, 21.0])
    monkeypatch.setattr(run.time, "perf_counter", lambda: next(clock))
    stages = run.Stages(2)
    for name in ("one", "two"):
        with stages.stage(name):
            pass
    assert stages.seconds == {"one": 2.5, "two": 1.0}
    stages.show()
    said = capsys.readouterr().err
    assert "1/2 one" in said and "2/2 two" in said and "3.5" in said
