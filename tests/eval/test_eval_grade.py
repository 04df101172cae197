"""`s1jax grade`: completions of any engine judged again, without a model."""

import json
import pathlib
import subprocess
import sys

import eval_cases
import pytest

from s1jax.__main__ import main
from s1jax.eval import grade as grade_verb
from s1jax.eval.completions import segment_of
from s1jax.grading.pool import Grader
from s1jax.records import Sample, read_jsonl, to_completion, write_jsonl
from s1jax.runs.lock import locked
from s1jax.text.tokens import Tokenizer

ROWS = [
    {"id": "boxed", "text": "<think>12?</think>So $\\boxed{\\frac12}$.", "gold": "0.5"},
    {"id": "cut", "text": "<think>it is 3, no", "gold": "3"},
    {"id": "several", "text": "Final Answer: (B) and (C) are correct.", "gold": "C, B", "kind": "letters"},
    {"id": "sampled", "sample": 0, "text": "The answer is 1,234.", "gold": 1234, "kind": "number"},
    {"id": "sampled", "sample": 1, "text": "#### 1233", "gold": 1234, "kind": "number", "note": "carried along"},
]


def run(folder: pathlib.Path, *extra: str, rows: list[dict] | None = None) -> tuple[int, list[dict], dict]:
    write_jsonl(folder / "completions.jsonl", ROWS if rows is None else rows)
    code = main(["grade", f"completions={folder}/completions.jsonl", f"out={folder}/out", *extra])
    report = folder / "out" / "report.json"
    return code, read_jsonl(folder / "out" / "samples.jsonl"), json.loads(report.read_text("utf-8"))


def fails(folder: pathlib.Path, capsys, *extra: str, rows: list[dict] | None = None) -> str:
    write_jsonl(folder / "completions.jsonl", ROWS if rows is None else rows)
    assert main(["grade", f"completions={folder}/completions.jsonl", f"out={folder}/out", *extra]) == 2
    return capsys.readouterr().err


def test_rows_are_graded_and_reported(tmp_path, capsys):
    code, samples, report = run(tmp_path)
    assert code == 0 and [(row["id"], row["sample"]) for row in samples] == [
        ("boxed", 0), ("cut", 0), ("several", 0), ("sampled", 0), ("sampled", 1),
    ]  # fmt: skip
    assert [(row["extracted"], row["rule"], row["correct"], row["no_answer"]) for row in samples] == [
        ("\\frac12", "boxed", True, False),
        (None, None, False, True),
        ("BC", "line", True, False),
        ("1,234", "statement", True, False),
        ("1233", "hash", False, False),
    ]
    assert not any(row["undecided"] for row in samples) and samples[4]["note"] == "carried along"
    assert (report["questions"], report["rows"], report["no_answer"], report["undecided"]) == (4, 5, 1, 0)
    assert report["accuracy"] == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert report["rules"] == {"boxed": 1, "hash": 1, "line": 1, "statement": 1} and report["fallback_share"] == 0.25
    printed = capsys.readouterr().out
    assert "accuracy 62.5 %" in printed and "statement* 1; * from running text: 25.0 %" in printed


def test_the_share_of_running_text_is_of_the_answers_that_were_read(tmp_path):
    texts = ["The answer is 3.", "", "Of this nobody can say more.", "\\boxed{3}"]
    _, _, report = run(tmp_path, rows=[{"id": f"q{i}", "text": text, "gold": "3"} for i, text in enumerate(texts)])
    assert (report["no_answer"], report["fallback_share"]) == (2, 0.5)


def test_the_last_end_of_thinking_counts(tmp_path):
    text = "<think>1</think>Answer: 1. Or: </think>Answer: 2"
    _, samples, _ = run(tmp_path, rows=[{"id": "q", "text": text, "gold": "2"}])
    assert [row["extracted"] for row in samples] == ["2"]
    found = segment_of({}, "Answer: 1 END Answer: 2 END Answer: 3", ("END", "E"))
    assert found == " Answer: 3"


def test_means_are_of_questions_and_not_of_rows(tmp_path):
    """Three rows of one question do not outweigh one of another."""
    rows = [
        {"id": id, "sample": sample, "text": f"Answer: {text}", "gold": "1", "thinking_tokens": thinking}
        for id, sample, text, thinking in [("a", 2, 1, 10), ("b", 0, 5, 100), ("a", 0, 7, 10), ("a", 1, 1, 10)]
    ]
    _, _, report = run(tmp_path, rows=rows)
    assert report["mean_thinking_tokens"] == (10 + 100) / 2 and report["samples_per_question"] == 1
    assert report["accuracy"] == pytest.approx((2 / 3 + 0) / 2)


def test_it_needs_no_jax(tmp_path):
    write_jsonl(tmp_path / "c.jsonl", ROWS)
    code = (
        "import sys; from s1jax.__main__ import main; assert main(sys.argv[1:]) == 0; assert 'jax' not in sys.modules"
    )
    arguments = ["grade", f"completions={tmp_path}/c.jsonl", f"out={tmp_path}/out"]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    """Killed after its first chunk, with a torn line: only what is missing is graded, and the files are the same."""
    rows = [{"id": f"q{i}", "text": f"Answer: {i}", "gold": "3"} for i in range(10)]
    (tmp_path / "whole").mkdir()
    _, whole, report = run(tmp_path / "whole", rows=rows)
    monkeypatch.setattr(grade_verb, "CHUNK", 4)
    graded: list[int] = []
    original = Grader.map

    def dying(self, items):
        if graded:
            raise KeyboardInterrupt
        graded.append(len(items))
        return original(self, items)

    monkeypatch.setattr(Grader, "map", dying)
    (tmp_path / "cut").mkdir()
    write_jsonl(tmp_path / "cut" / "completions.jsonl", rows)
    assert main(["grade", f"completions={tmp_path}/cut/completions.jsonl", f"out={tmp_path}/cut/out"]) == 130
    with (tmp_path / "cut" / "out" / "samples.jsonl").open("a") as torn:
        torn.write('{"id": "q4", "sam')
    seen: list[int] = []
    monkeypatch.setattr(Grader, "map", lambda self, items: (seen.append(len(items)), original(self, items))[1])
    code, samples, resumed = run(tmp_path / "cut", rows=rows)
    assert code == 0 and graded == [4] and seen == [4, 2] and samples == whole
    assert {**resumed, "completions": ""} == {**report, "completions": ""}
    seen.clear()
    assert run(tmp_path / "cut", rows=rows)[0] == 0 and seen == []


def test_another_completion_under_the_same_id_is_refused(tmp_path, capsys):
    assert run(tmp_path)[0] == 0
    before = (tmp_path / "out" / "samples.jsonl").read_bytes()
    for change in ({"text": "\\boxed{7}"}, {"gold": "7"}, {"kind": "exact"}):
        printed = fails(tmp_path, capsys, rows=[{**ROWS[0], **change}, *ROWS[1:]])
        assert "sample 0 of 'boxed' was graded with another text, gold or kind" in printed
    assert "grades no row of the completions" in fails(tmp_path, capsys, rows=ROWS[1:])
    assert (tmp_path / "out" / "samples.jsonl").read_bytes() == before


def test_a_folder_in_use_is_left_alone(tmp_path, capsys):
    """The lock of another process is seen before anything is written."""
    assert run(tmp_path)[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    holder = "import sys\nfrom s1jax.runs.lock import locked\nwith locked(sys.argv[1]):\n"
    holder += " print('in', flush=True)\n sys.stdin.read()"
    arguments = [sys.executable, "-c", holder, str(tmp_path / "out")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"in\n"
        assert "is in use by process" in fails(tmp_path, capsys)
        after = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name != ".lock"}
        assert after == before
        other.communicate()
    with locked(tmp_path / "out"):
        pass


@pytest.mark.parametrize(
    "row, message",
    [
        ({"id": "x", "text": "1"}, "id 'x' has no reference answer (gold is None); give every row a gold"),
        ({"id": "x", "text": "1", "gold": " "}, "has no reference answer (gold is ' ')"),
        ({"id": "x", "text": "1", "gold": True}, "has no reference answer (gold is True)"),
        ({"id": "x", "text": "1", "gold": "1", "kind": "maths"}, "kind is 'maths'; it must be one of math, aime"),
        ({"id": "cut", "text": "1", "gold": "1"}, "sample 0 of id 'cut' stands in row 2 too"),
        ({"id": "x", "gold": "1"}, "has neither a text nor token_ids (its fields: id, gold)"),
        ({"id": "x", "token_ids": [1], "gold": "1"}, "has token_ids and no text; give tokenizer=DIR"),
        ({"id": "x", "token_ids": ["1"], "gold": "1"}, "has neither a text nor token_ids"),
        ({"text": "1", "gold": "1"}, "has the id None; give it an id"),
        ({"id": "x", "sample": -1, "text": "1", "gold": "1"}, "sample is -1; it must be a whole number from 0"),
    ],
)
def test_rows_that_do_not_fit_are_named(tmp_path, capsys, row, message):
    printed = fails(tmp_path, capsys, rows=[*ROWS, row])
    assert message in printed and "row 6" in printed and not (tmp_path / "out").exists()


def test_settings_that_do_not_fit_are_named(tmp_path, capsys):
    assert "kind='maths' is not known; use one of math, aime" in fails(tmp_path, capsys, "kind=maths")
    assert "key 'processes' is 0; it must be a whole number from 1" in fails(tmp_path, capsys, "processes=0")
    assert "benchmark='aime99' is neither a file nor one of aime24" in fails(tmp_path, capsys, "benchmark=aime99")
    (tmp_path / "out").write_text("a file")
    assert "out is a file" in fails(tmp_path, capsys).replace(f"{tmp_path}/", "")
    (tmp_path / "out").unlink()
    assert main(["grade", f"completions={tmp_path}/completions.jsonl", f"out={tmp_path}/completions.jsonl/a/b"]) == 2
    assert "cannot be made" in capsys.readouterr().err
    with (tmp_path / "completions.jsonl").open("a") as file:
        file.write("{broken\n")
    assert main(["grade", f"completions={tmp_path}/completions.jsonl", f"out={tmp_path}/out"]) == 2
    assert "completions.jsonl:6 is not JSON" in capsys.readouterr().err


def test_golds_of_a_benchmark(tmp_path, capsys):
    write_jsonl(tmp_path / "mine.jsonl", [{"id": f"q{i}", "question": f"{i}+1?", "answer": i + 1} for i in range(3)])
    rows = [{"id": f"q{i}", "text": f"Answer: {2 * i}"} for i in range(3)]
    _, samples, report = run(tmp_path, f"benchmark={tmp_path}/mine.jsonl", rows=rows)
    assert [row["correct"] for row in samples] == [False, True, False] and [row["gold"] for row in samples] == list(
        "123"
    )
    assert report["benchmark"] == "mine"
    printed = fails(tmp_path, capsys, f"benchmark={tmp_path}/mine.jsonl", rows=[*rows, {"id": "q9", "text": "1"}])
    assert "no question of the benchmark has this id" in printed


def test_texts_of_a_private_benchmark_are_left_out(tmp_path):
    question = {
        "Question": "Secret?",
        "Correct Answer": "yes",
        **{f"Incorrect Answer {i}": f"no {i}" for i in (1, 2, 3)},
    }
    names = list(question)
    (tmp_path / "gpqa_diamond.csv").write_text(",".join(names) + "\n" + ",".join(question.values()) + "\n")
    rows = [{"question": "Secret?", "text": "hidden words. Answer: A", "prompt": "Secret?", "gold": "x"}]
    _, samples, report = run(tmp_path, "benchmark=gpqa_diamond", f"benchmark_source={tmp_path}", rows=rows)
    assert report["private"] and report["questions"] == 1 and samples[0]["extracted"] == "A"
    for path in (tmp_path / "out").iterdir():
        assert "Secret" not in path.read_text("utf-8") and "hidden" not in path.read_text("utf-8")


def test_rows_of_our_own_files_stay_rows_of_ours(tmp_path):
    """A completion without a text of its own is decoded; thinking that never ended gives no answer."""
    tokenizer = Tokenizer.load(eval_cases.tokenizer_folder(tmp_path / "tokenizer"))
    ids = tokenizer.encode("3 or 4?") + tokenizer.encode_markup("<|im_start|>answer") + tokenizer.encode("Answer: 4")
    own = {
        "id": "q", "sample": 0, "seed": 1, "prompt_ids": [1], "token_ids": ids, "forced": [False] * len(ids),
        "thinking_tokens": 7, "answer_offset": 14, "answer_tokens": 9, "n_ignored": 0, "steps": 30,
        "thinking_finish_reason": "natural", "finish_reason": "stop", "reopened": False, "text": "", "logprobs": None,
        "loop_at": None, "format": "s1jax.completion/1", "gold": "4",
    }  # fmt: skip
    cut = {**own, "id": "r", "token_ids": ids[:7], "thinking_tokens": 7, "finish_reason": "length"}
    _, samples, report = run(tmp_path, f"tokenizer={tmp_path}/tokenizer", rows=[own, cut])
    graded = [to_completion(row, Sample) for row in samples]
    assert [(row.extracted, row.correct, row.rule) for row in graded] == [("4", True, "line"), (None, False, None)]
    assert report["mean_thinking_tokens"] == 7 and report["truncated"] == 1
    assert run(tmp_path, f"tokenizer={tmp_path}/tokenizer", rows=[own, cut])[1] == samples


def test_another_kind_of_the_benchmark_or_another_text_is_another_run(tmp_path, capsys):
    """Rows in our own format carry no digest of what they were graded by."""
    own = {"id": "q", "sample": 0, "token_ids": [1, 2], "format": "s1jax.completion/1", "gold": "A"}
    own["text"] = "The answer is A"
    assert run(tmp_path, rows=[own])[0] == 0
    capsys.readouterr()
    assert "another text, gold or kind" in fails(tmp_path, capsys, rows=[{**own, "text": "The answer is B"}])
    golds = tmp_path / "golds.jsonl"
    write_jsonl(golds, [{"id": own["id"], "question": "?", "choices": ["yes", "no"], "answer": "A"}])
    assert "kind was 'math', is 'letter'" in fails(tmp_path, capsys, f"benchmark={golds}", rows=[own])
    assert run(tmp_path, f"benchmark={golds}", "kind=math", rows=[own])[0] == 0
