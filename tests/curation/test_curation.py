"""Curation as a whole: every stage's contract, traces, and a run with its receipt, interrupted and not."""

import collections
import dataclasses
import json
import pathlib

import pytest
from curation_cases import AIME, MATH, candidate, quiet
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import STAGES
from curation.decontaminate import Against, DecontaminateConfig
from curation.diversity import DiversityConfig
from curation.quality import QualityConfig
from curation.run import CurateRun, run
from curation.sources import SourceConfig, load
from curation.stage import Tools, Trace
from curation.traces import TracesConfig
from curation.traces import select as attach
from s1jax.config import BadInput
from s1jax.records import Question, question_id, read_jsonl, write_jsonl
from s1jax.text.render import columns


@pytest.fixture
def tools(tmp_path) -> Tools:
    return Tools(seed=3, folder=tmp_path, progress=quiet)


@pytest.fixture
def benchmark_file(tmp_path):
    write_jsonl(tmp_path / "bench.jsonl", [{"id": "b1", "problem": "What is the answer to everything"}])
    return Against("bench", str(tmp_path / "bench.jsonl"))


@pytest.mark.parametrize("name", sorted(STAGES))
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_contract_of_every_stage(tmp_path_factory, name, data):
    """Every candidate is kept or dropped, once, in order, with a reason; and twice the same."""
    folder = tmp_path_factory.mktemp("stage")
    write_jsonl(folder / "bench.jsonl", [{"problem": "What is the answer to everything"}])
    texts = st.sampled_from(["What  is the answer to everything?", "p1. x", "q", "Q", "[asy]", "r" * 30, "one two"])
    pool = [
        candidate(
            data.draw(texts),
            id=str(i),
            domain=data.draw(st.sampled_from([None, "a", "b"])),
            source=data.draw(st.sampled_from([AIME, MATH])),
            thinking=data.draw(st.sampled_from([None, "t", "<|im_start|>"])),
            answer="1",
            thinking_length=data.draw(st.integers(0, 9000)),
            verdicts=data.draw(st.sampled_from([{}, {"a": 0.0}, {"a": 1.0}])),
        )
        for i in range(data.draw(st.integers(0, 12)))
    ]
    config = {
        "decontaminate": DecontaminateConfig(against=(Against("bench", str(folder / "bench.jsonl")),)),
        "diversity": DiversityConfig(total=3, uniform=2),
    }.get(name, CurateRun.__dataclass_fields__[name].default)
    tools = Tools(seed=1, folder=folder, progress=quiet)
    selection = STAGES[name].select(pool, config, tools)
    assert len(selection.kept) + len(selection.dropped) == len(pool)
    kept = [c.id for c in selection.kept]
    assert sorted([*kept, *(drop.id for drop in selection.dropped)]) == sorted(c.id for c in pool)
    assert kept == [c.id for c in pool if c.id in kept]
    assert all(drop.rule and drop.reason and drop.source for drop in selection.dropped)
    assert selection == STAGES[name].select(pool, config, tools)


def test_teacher_is_asked_once_for_each_question(tools):
    asked = []

    def teacher(question: Question):
        asked.append(question.text)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return None if question.text == "hopeless" else Trace(f"about {question.text}", "Answer: 4")

    pool = [candidate(t, gold="4") for t in ("a", "hopeless", "b", "c")] + [candidate("own", thinking="t", answer="1")]
    with pytest.raises(KeyboardInterrupt):
        attach(pool, TracesConfig(), dataclasses.replace(tools, teacher=teacher))
    with (tools.folder / "traces.jsonl").open("a") as torn:
        torn.write('{"id": "cut o')
    selection = attach(pool, TracesConfig(), dataclasses.replace(tools, teacher=teacher))
    assert asked == ["a", "hopeless", "b", "b", "c"]
    assert [(c.thinking, c.correct) for c in selection.kept[:3]] == [(f"about {t}", True) for t in "abc"]
    assert [(d.rule, d.id) for d in selection.dropped] == [("no trace", question_id("hopeless"))]


def test_verdicts_come_from_the_row_or_from_grading(tools, tmp_path):
    traces = [
        {"question": "yes", "deepseek_thinking_trajectory": "t", "deepseek_attempt": "5", "deepseek_grade": "Yes"},
        {"question": "no", "deepseek_thinking_trajectory": "t", "deepseek_attempt": "4", "deepseek_grade": "No"},
        {"question": "ask", "thinking_trajectories": ["t", "u"], "attempt": "Answer: 4"},
        {"question": "wrong", "thinking": "t", "answer": "Answer: 5"},
        {"question": "empty", "thinking": " ", "answer": "Answer: 5"},
        {"question": "ask", "thinking": "second", "answer": "Answer: 5"},
    ]
    write_jsonl(tmp_path / "traces.jsonl", traces)
    pool = [candidate(t, gold="4") for t in ("yes", "no", "ask", "wrong", "empty")] + [candidate("wrong", gold=None)]
    config = TracesConfig(files=(str(tmp_path / "traces.jsonl"),))
    kept = attach(pool, config, tools).kept
    assert [(c.question.text, c.correct) for c in kept] == [
        ("yes", True),
        ("no", False),
        ("ask", True),
        ("wrong", False),
        ("wrong", None),
    ]
    ungraded = attach(pool, dataclasses.replace(config, grade=False), tools).kept
    assert [c.correct for c in ungraded] == [True, False, None, None, None]


def test_solution_stands_in_only_when_asked(tools):
    pool = [candidate("a", gold="4", solution="so 4"), candidate("b", gold="4"), candidate("c", solution="so")]
    assert not attach(pool, TracesConfig(), tools).kept
    [only] = attach(pool, TracesConfig(solution=True), tools).kept
    assert (only.thinking, only.answer, only.correct) == ("so 4", "4", True)


ROWS = [
    {"question": "What is the answer to everything?", "thinking": "t", "answer": "1"},
    {"question": "p1. x p2. y", "thinking": "t", "answer": "1"},
    {"question": "easy", "thinking": "t", "answer": "1", "verdicts": {"small": 1.0}},
    {"question": "twice", "thinking": "t u v", "answer": "Answer: 7", "gold": "7", "domain": "d", "source": "mine"},
    {"question": "Twice!", "thinking": "t", "answer": "1"},
    {"question": "no trace"},
    {"question": "cut", "thinking": "t", "answer": "\\boxed{1"},
    {"question": " "},
    {"question": "wrong", "thinking": "t", "answer": "Answer: 8", "gold": 7, "id": "w"},
]


@pytest.fixture
def config(tmp_path, benchmark_file) -> CurateRun:
    write_jsonl(tmp_path / "pool.jsonl", ROWS)
    return CurateRun(
        sources=(SourceConfig(path=str(tmp_path / "pool.jsonl"), name="quick"),),
        decontaminate=DecontaminateConfig(against=(benchmark_file,)),
        out=str(tmp_path / "out"),
    )


def test_run_leaves_rows_and_a_receipt_of_every_drop(config):
    lines = []
    folder = run(config, progress=lines.append)
    rows = read_jsonl(folder / "rows.jsonl")
    assert [row["question"] for row in rows] == ["twice", "wrong"]
    assert rows[0] == {
        "id": question_id("twice"),
        "question": "twice",
        "thinking": "t u v",
        "answer": "Answer: 7",
        "gold": "7",
        "domain": "d",
        "source": "mine",
        "correct": True,
        "thinking_length": 3,
    }
    assert (rows[1]["id"], rows[1]["gold"], rows[1]["correct"], rows[1]["source"]) == ("w", "7", False, "quick")
    assert columns(rows[0]).thinking == "t u v"
    receipt = json.loads((folder / "receipt.json").read_text())
    assert receipt["format"] == "s1jax.curate/1"
    assert (receipt["pool"], receipt["kept"], receipt["dropped"]) == (9, 2, 7)
    assert collections.Counter(drop["stage"] for drop in receipt["drops"]) == {
        "sources": 1,
        "deduplicate": 1,
        "traces": 1,
        "quality": 2,
        "difficulty": 1,
        "decontaminate": 1,
    }
    for step in receipt["stages"]:
        assert step["kept"] + step["dropped"] == step["before"]
        assert sum(step["rules"].values()) == step["dropped"]
    assert receipt["decontaminated_against"] == ["bench"] and "everything" not in str(receipt)
    assert lines[-1].startswith("kept 2 of 9")


def test_run_twice_gives_the_same_bytes(config, tmp_path):
    first = run(config, progress=quiet)
    names = ("rows.jsonl", "receipt.json")
    before = [(first / name).read_bytes() for name in names]
    run(config, progress=quiet)
    elsewhere = run(dataclasses.replace(config, out=str(tmp_path / "out2")), progress=quiet)
    for folder in (first, elsewhere):
        assert [(folder / name).read_bytes() for name in names] == before


def test_killed_run_goes_on(config):
    """Teacher and solver die on their way; nothing they finished is asked again, and the rows are those of one go."""

    class Once:
        def __init__(self, dies_at):
            self.asked, self.dies_at = [], dies_at

        def ask(self, text):
            if len(self.asked) == self.dies_at:
                self.dies_at = None
                raise KeyboardInterrupt
            self.asked.append(text)

    writer, solver = Once(0), Once(2)

    def teacher(question):
        writer.ask(question.text)
        return Trace("taught", "Answer: 2")

    def solve(questions):
        for question in questions:
            solver.ask(question.text)
        return [{"large": 0.0} for _ in questions]

    config = dataclasses.replace(config, difficulty=dataclasses.replace(config.difficulty, batch=1))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(config, teacher=teacher, solver=solve, progress=quiet)
    folder = run(config, teacher=teacher, solver=solve, progress=quiet)
    assert writer.asked == ["no trace"]
    assert len(solver.asked) == len(set(solver.asked)) >= 3
    assert [row["question"] for row in read_jsonl(folder / "rows.jsonl")] == ["twice", "no trace", "wrong"]


def test_changed_pool_is_refused(config, tmp_path):
    run(config, progress=quiet)
    write_jsonl(tmp_path / "pool.jsonl", ROWS[:4])
    with pytest.raises(BadInput, match="was begun with another pool"):
        run(config, progress=quiet)
    with pytest.raises(BadInput, match="seed was 0, is 1"):
        run(dataclasses.replace(config, seed=1), progress=quiet)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_nothing_of_the_pool_is_lost(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("run")
    write_jsonl(folder / "bench.jsonl", [{"problem": "What is the answer to everything"}])
    rows = data.draw(st.lists(st.sampled_from(ROWS), min_size=1, max_size=12)) + [ROWS[3]]
    write_jsonl(folder / "pool.jsonl", rows)
    middle = data.draw(st.permutations(["traces", "quality", "difficulty", "quality"]))
    stages = ("deduplicate", *middle[: data.draw(st.integers(0, 4))], "quality", "decontaminate", "diversity")
    config = CurateRun(
        sources=(SourceConfig(path=str(folder / "pool.jsonl")),),
        stages=stages,
        decontaminate=DecontaminateConfig(against=(Against("bench", str(folder / "bench.jsonl")),)),
        diversity=DiversityConfig(total=data.draw(st.integers(1, 5))),
        out=str(folder / "out"),
    )
    out = run(config, progress=quiet)
    receipt = json.loads((out / "receipt.json").read_text())
    assert receipt["kept"] == len(read_jsonl(out / "rows.jsonl"))
    assert receipt["kept"] + receipt["dropped"] == receipt["pool"] == len(rows)
    assert len(receipt["drops"]) == receipt["dropped"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": ("magic",)}, "stages: 'magic' is not known"),
        ({"stages": ("decontaminate", "quality")}, "quality after decontaminate"),
        ({"sources": ()}, "sources is empty"),
        ({"sources": (SourceConfig(kind="gpqa"),)}, "kind 'gpqa' is not known"),
        ({"sources": (SourceConfig(answer_kind="riddle"),)}, "answer_kind 'riddle' is not known"),
        ({"sources": (SourceConfig(),)}, "kind 'rows' needs a path"),
        ({"stages": ("traces",)}, "stand more than once"),
        ({"stages": ("deduplicate",)}, "have no trace"),
        ({"quality": QualityConfig(required=("solution",))}, "no row is left"),
        ({"quality": QualityConfig(preset="s2")}, "preset='s2' is not known"),
        ({"traces": TracesConfig(files=("nowhere.jsonl",))}, "nowhere.jsonl is neither a file"),
    ],
)
def test_runs_that_cannot_be_made(config, tmp_path, change, message):
    if "stages" in change and change["stages"] == ("traces",):
        write_jsonl(tmp_path / "pool.jsonl", [ROWS[3], ROWS[3]])
    with pytest.raises(BadInput, match=message):
        run(dataclasses.replace(config, **change), progress=quiet)
    assert pathlib.Path(config.out).exists() == message.startswith(("stand", "have", "no row"))


def test_row_that_its_loader_cannot_read_is_named(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", [{"problem": "q"}])
    with pytest.raises(BadInput, match="row 1 is no row of kind 'math'"):
        load(SourceConfig(kind="math", path=str(tmp_path / "x.jsonl")))


def test_limit_takes_the_first_rows(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", ROWS)
    selection = load(SourceConfig(path=str(tmp_path / "x.jsonl"), limit=3, answer_kind="integer"))
    assert [c.question.text for c in selection.kept] == [row["question"] for row in ROWS[:3]]
    assert {c.kind for c in selection.kept} == {"integer"}


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"verdicts": {"a": "b"}}, "could not convert string to float"),
        ({"kind": "maths"}, "kind 'maths' is none of math, aime"),
        ({"source": 5}, "source is 5, not a text"),
        ({"domain": ["a"]}, "domain is .'a'., not a text"),
    ],
)
def test_rows_of_wrong_types_are_named(tmp_path, fields, says):
    write_jsonl(tmp_path / "pool.jsonl", [{"question": "q", **fields}])
    with pytest.raises(BadInput, match=f"row 1 is no row of kind 'rows' .*{says}"):
        load(SourceConfig(path=str(tmp_path / "pool.jsonl")))
    with pytest.raises(BadInput, match="limit=-1 leaves no row"):
        load(SourceConfig(path=str(tmp_path / "pool.jsonl"), limit=-1))
