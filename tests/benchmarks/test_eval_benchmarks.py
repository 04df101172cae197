"""Every registered benchmark keeps the contract; upstream's grading rules against recordings of upstream."""

import csv
import json
import pathlib

import pytest

from s1jax import records
from s1jax.benchmarks import BENCHMARKS, benchmark
from s1jax.config import BadInput
from s1jax.grading import compat, grade

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "compat_grades.jsonl"
RIGHT_FORM = {"aime": r"\boxed{%s}", "math": r"so $\boxed{%s}$.", "number": "Answer: %s", "letter": "**Answer: (%s)**"}


@pytest.fixture
def gpqa_file(tmp_path):
    """Made-up questions under GPQA's column names; the real ones are nowhere here."""
    path = tmp_path / "gpqa_diamond.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["Question", "Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3)), "High-level domain"]
        )
        for i in range(60):
            writer.writerow([f"Which number\nis {i}? ", f"{i}", f"{i + 1}", f"{i + 2} ", f"{i + 3}", "Physics"])
    return path


@pytest.fixture(params=BENCHMARKS)
def loaded(request, gpqa_file):
    bench = BENCHMARKS[request.param]
    if bench.name == "gpqa_diamond":
        return bench, bench.load(str(gpqa_file))
    folder = request.getfixturevalue("shared") / "benchmarks"
    return bench, bench.load(str(folder))


def test_contract(loaded):
    bench, questions = loaded
    assert BENCHMARKS[bench.name] is bench and bench.kind in grade.KINDS
    assert bench.private or len(questions) == bench.size
    assert len({question.id for question in questions}) == len(questions)
    wrong = "J" if bench.kind == "letter" else "-12345"
    for question in questions:
        assert question.answer and question.text and question.source == bench.name
        assert question.text in bench.prompt(question)
        right = grade.grade(RIGHT_FORM[bench.kind] % question.answer, question.answer, bench.kind)
        assert right.correct, (question.id, right)
        for text in ("", "Answer: " + wrong, "I cannot say."):
            assert not grade.grade(text, question.answer, bench.kind).correct


def test_aime_answers_are_integers_in_range(shared):
    for name in ("aime24", "aime25"):
        for question in BENCHMARKS[name].load(str(shared / "benchmarks" / f"{name}.jsonl")):
            assert 0 <= int(question.answer) <= 999


def test_the_default_source_is_the_shared_folder(shared, monkeypatch, tmp_path):
    monkeypatch.setenv("S1JAX_SHARED", str(shared.parent))
    assert len(BENCHMARKS["aime25"].load()) == 30
    monkeypatch.setenv("S1JAX_SHARED", str(tmp_path))
    with pytest.raises(BadInput, match="TIGER-Lab/AIME25 is neither a file, a folder nor a hub data set"):
        BENCHMARKS["aime25"].load()


def test_gpqa_choices_are_ordered_by_a_hash_of_the_question(gpqa_file):
    bench = BENCHMARKS["gpqa_diamond"]
    questions = bench.load(str(gpqa_file))
    assert questions == bench.load(str(gpqa_file.parent))
    assert bench.private and {question.answer for question in questions} == set("ABCD")
    for question in questions:
        correct = question.text.split()[-1].rstrip("?")
        assert question.choices[ord(question.answer) - ord("A")] == correct
        assert question.id == records.question_id(question.text)
    lines = gpqa_file.read_text(encoding="utf-8").splitlines(keepends=True)
    gpqa_file.write_text("".join([lines[0], *lines[21:61]]), encoding="utf-8")
    assert bench.load(str(gpqa_file)) == questions[10:30]  # others' presence changes nothing
    assert "\n\nA) " in bench.prompt(questions[0])


def test_repeated_choices_keep_the_place_of_the_correct_one():
    orders = [benchmark.shuffled(f"question {i}", ["same", "same", "x", "y"], correct=0) for i in range(40)]
    assert {letter for _, letter in orders} == set("ABCD")


def test_local_file(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [{"question": "1+1?", "answer": 2}, {"id": "b", "problem": "x?", "expected_answer": "y"}]
    records.write_jsonl(path, rows)
    bench = benchmark.local(str(path))
    first, second = bench.load()
    assert (bench.name, bench.kind, first.answer, second.id) == ("mine", "math", "2", "b")
    assert first.id == records.question_id("1+1?") and bench.prompt(first) == "1+1?"
    assert benchmark.local(str(path), "exact").kind == "exact"
    choices = [
        {"question": f"{i}?", "choices": ["p", "q", "r"], "answer": answer} for i, answer in enumerate(("C", "q", 0))
    ]
    records.write_jsonl(path, choices)
    bench = benchmark.local(str(path))
    assert [question.answer for question in bench.load()] == ["C", "B", "A"] and bench.kind == "letter"
    assert bench.prompt(bench.load()[0]) == "0?\n\nA) p\nB) q\nC) r"


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"question": "a?"}], "row 1 has no field 'answer'"),
        ([{"question": "a?", "answer": "1"}] * 2, "ids must be unique"),
        ([{"question": "a?", "answer": "E", "choices": ["p", "q"]}], "'E' is no letter, text or index"),
        ([{"question": "a?", "answer": 0, "choices": list("abcdefghijk")}], "has 11 choices; give at most 10"),
        ([{"question": "a?", "answer": " "}], "has the answer ' '; fill both in"),
        ([{"question": "", "answer": "1"}], "question '' has the answer '1'; fill both in"),
        ([{"question": "a?", "answer": "A", "choices": ["p"]}, {"question": "b?", "answer": "1"}], "split the file"),
    ],
)
def test_bad_files_are_named(tmp_path, rows, message):
    path = tmp_path / "bad.jsonl"
    records.write_jsonl(path, rows)
    with pytest.raises(BadInput, match=message):
        benchmark.local(str(path)).load()


def test_unknown_grader_is_refused(tmp_path):
    with pytest.raises(BadInput, match="grader='maths' is not known; use one of math, aime"):
        benchmark.local(str(tmp_path / "x.jsonl"), "maths")


def test_compat_equals_upstream():
    head, *cases = map(json.loads, GOLDEN.read_text(encoding="utf-8").splitlines())
    assert "77272c6" in head["what"] and len(cases) == 240 and 100 <= sum(case["correct"] for case in cases)
    for case in cases:
        verdict = compat.grade(case["text"], case["gold"], case["kind"])
        extracted = verdict.extracted
        if case["kind"] == "aime" and extracted.isdecimal() and case["gold"].isdecimal():
            extracted = str(int(extracted))
        assert (extracted, verdict.correct) == (case["extracted"], case["correct"]), case


def test_compat_survives_what_upstream_does_not():
    assert compat.grade(r"\fbox{5}", "5", "aime").correct
    for text in (r"\boxed5", r"\boxed}", "\\boxed{\u00b2}", "\\boxed{" + "9" * 5000 + "}", ""):
        assert not compat.grade(text, "5", "aime").correct
    assert compat.grade("I cannot say", "A", "letter").correct  # a quarter of all, for nothing


def test_a_csv_of_another_encoding_is_named(tmp_path):
    (tmp_path / "gpqa_diamond.csv").write_bytes(b"\xff\xfeQuestion")
    with pytest.raises(BadInput, match="gpqa_diamond.csv is no CSV in UTF-8"):
        BENCHMARKS["gpqa_diamond"].load(str(tmp_path))


def test_a_question_of_ones_own_may_be_a_prompt_or_a_chat_of_one_turn(tmp_path):
    rows = [
        {"question": "a?"},
        {"prompt": "a?"},
        {"prompt": [{"role": "user", "content": "a?"}]},
        {"messages": [{"from": "human", "value": "a?"}]},
        {"problem": "a?", "messages": [{"role": "system", "content": "other"}]},
    ]
    path = tmp_path / "own.jsonl"
    records.write_jsonl(path, [{"id": i, "answer": "2", **row} for i, row in enumerate(rows)])
    assert [question.text for question in benchmark.local(str(path)).load()] == ["a?"] * len(rows)
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "a?"}]
    records.write_jsonl(path, [{"answer": "2", "messages": turns}])
    with pytest.raises(BadInput, match="is a chat of turns by system, user; a benchmark asks one turn of the user"):
        benchmark.local(str(path)).load()
