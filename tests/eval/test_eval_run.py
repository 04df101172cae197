"""The verbs `eval` and `report` over a scripted engine: what is written, what goes on, what is refused."""

import csv
import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import urllib.parse

import pytest
from eval_cases import session, tokenizer_folder

from s1jax import records
from s1jax.config import BadInput
from s1jax.control.budget.config import BudgetConfig
from s1jax.control.free import FreeConfig
from s1jax.engine.sampling import SamplingConfig
from s1jax.eval import report, scaling, summary
from s1jax.eval import run as evaluation
from s1jax.eval.findings import findings
from s1jax.eval.report import ReportRun
from s1jax.eval.run import EvalRun, VoteSweep
from s1jax.eval.scaling import Point
from s1jax.methods.parts import assign_engine
from s1jax.methods.vote import VoteConfig

N = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tokenizer_folder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    records.write_jsonl(path, [{"id": f"q{i}", "question": f"{i} + {i}?", "answer": 2 * i} for i in range(N)])
    return str(path)


def thinker(request):
    """Right if the row may think long enough for its question; every end that is ignored adds ten ids."""
    i = int(request.id[1:])
    needed = 10 + 4 * (i % 12)
    row = request.control
    allowed = min(row.budget, 60 if row.n_ignore == 0 else 60 + 10 * row.n_ignore)
    luck = assign_engine(f"{request.id} {request.sample}", 10) < 3
    right = allowed >= needed or luck
    thinking = "t" * (60 + 10 * row.n_ignore)
    answer = 2 * i if right else assign_engine(request.id + str(request.sample), 3) + 100
    return thinking, f" {answer}" if row.is_thinking and row.budget < len(thinking) else f"\nAnswer: {answer}"


@pytest.fixture(scope="module")
def sweep(folder, questions, tmp_path_factory):
    """A finished sweep, its config and its folder."""
    config = EvalRun(
        model=folder,
        benchmark=questions,
        grader="integer",
        out=str(tmp_path_factory.mktemp("sweep") / "out"),
        budgets=(0, 8, 16, 32, 64),
        ignores=(0, 1, 2),
        votes=VoteSweep(n=8, temperature=0.7, thinking_token_budget=16),
    )
    evaluation.run(config, session(config, thinker)[0])
    return config, pathlib.Path(config.out)


def one(folder, questions, out, **fields):
    return EvalRun(model=folder, benchmark=questions, grader="integer", out=str(out), **fields)


def test_one_setting_leaves_samples_and_a_report(folder, questions, tmp_path):
    control = BudgetConfig(thinking_token_budget=32)
    config = one(folder, questions, tmp_path / "out", control=control, sampling=SamplingConfig(n=2, temperature=1.0))
    evaluation.run(config, session(config, thinker)[0])
    samples = [records.to_completion(row, records.Sample) for row in records.read_jsonl(tmp_path / "out/samples.jsonl")]
    assert sorted((s.id, s.sample) for s in samples) == sorted((f"q{i}", s) for i in range(N) for s in (0, 1))
    for sample in samples:
        i = int(sample.id[1:])
        assert sample.question == f"{i} + {i}?" and sample.gold == str(2 * i)
        assert sample.correct == (sample.extracted == str(2 * i)) and not sample.no_answer
        assert sample.thinking_tokens <= 32 and len(sample.forced) == len(sample.token_ids)
    data = json.loads((tmp_path / "out/report.json").read_text())
    assert data["format"] == "s1jax.report/1" and data["label"] == "budget 32" and data["benchmark"] == "sums"
    assert data["accuracy"] == pytest.approx(sum(s.correct for s in samples) / len(samples))
    assert data["interval"]["low"] < data["accuracy"] < data["interval"]["high"]
    assert data["mean_thinking_tokens"] == 32 and data["within_budget"] == 1.0
    assert (data["questions"], data["samples_per_question"], data["rows"]) == (N, 2, 2 * N)
    assert data["pass_at_k"]["2"] >= data["pass_at_k"]["1"] == pytest.approx(data["accuracy"])
    assert data["accuracy_by_upstream_rules"]["value"] == pytest.approx(data["accuracy"])
    assert data["control"]["thinking_token_budget"] == 32 and data["seeds"] == [0]
    assert {plan["points"] for plan in data["samples_to_show"]} == {1, 5, 10}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"samples.jsonl", "report.json", "run.json", "config.yaml"}


def test_counts_of_what_went_wrong(folder, questions, tmp_path):
    def script(request):
        i = int(request.id[1:])
        return "t", ("I cannot say", "\nAnswer: 0", "x" * 5000)[i % 3]

    config = one(folder, questions, tmp_path / "out", limit=9, control=FreeConfig())
    evaluation.run(config, session(config, script)[0])
    data = json.loads((tmp_path / "out/report.json").read_text())
    assert (data["no_answer"], data["truncated"], data["questions"]) == (6, 3, 9)
    assert data["finish_reasons"] == {"stop": 6, "length": 3} and data["within_budget"] is None
    assert data["thinking_finish_reasons"] == {"None": 9} and data["label"] == "free"


@pytest.mark.parametrize(
    "control, expected",
    [
        (BudgetConfig(min_thinking_tokens=33), False),
        (BudgetConfig(min_thinking_tokens=32, thinking_token_budget=32), True),
        (BudgetConfig(thinking_token_budget=31), False),
        (BudgetConfig(thinking_token_budget=-1), None),
        (FreeConfig(), None),
        (BudgetConfig(thinking=False), None),
    ],
)
def test_limits_are_the_budget_and_the_minimum(control, expected):
    assert summary.is_within(32, control) is expected


def test_an_interrupted_run_goes_on_without_asking_twice(folder, questions, tmp_path):
    config = one(folder, questions, tmp_path / "out", budgets=(8, 32))
    own, engines = session(config, thinker, dies_after=17)
    with pytest.raises(KeyboardInterrupt):
        evaluation.run(config, own)
    files = [tmp_path / "out" / name / "samples.jsonl" for name in ("budget-8", "budget-32")]
    assert sum(len(records.read_jsonl(file, allow_empty=True)) for file in files) == 17
    with files[1].open("a") as torn:
        torn.write('{"id": "q1", "sample": 0, "see')
    own, engines = session(config, thinker)
    evaluation.run(config, own)
    assert len(engines[0].seen) == 2 * N - 17
    own, engines = session(config, thinker)
    evaluation.run(config, own)
    assert not engines
    whole = one(folder, questions, tmp_path / "whole", budgets=(8, 32))
    evaluation.run(whole, session(whole, thinker)[0])
    for name in ("budget-8", "budget-32"):
        first, second = (json.loads((tmp_path / out / name / "report.json").read_text()) for out in ("out", "whole"))
        assert first == second


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from eval_cases import ScriptedEngine, session
from s1jax.eval import run as evaluation
from s1jax.eval.run import EvalRun
config = EvalRun(model={model!r}, benchmark={benchmark!r}, grader="integer", out={out!r})
def script(request):
    if len(engines[0].seen) - len(engines[0]._queue) == 10:
        os.kill(os.getpid(), signal.SIGKILL)
    return "t", "\\nAnswer: 4"
own, engines = session(config, script)
evaluation.run(config, own)
"""


def test_kill_9_loses_nothing_that_was_finished(folder, questions, tmp_path):
    fields = {"model": folder, "benchmark": questions, "out": str(tmp_path / "out")}
    code = KILLED.format(tests=os.path.dirname(os.path.dirname(__file__)), **fields)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert len(records.read_jsonl(tmp_path / "out/samples.jsonl")) == 9
    config = EvalRun(grader="integer", **fields)
    own, engines = session(config, lambda _: ("t", "\nAnswer: 4"))
    evaluation.run(config, own)
    assert len(engines[0].seen) == N - 9
    assert json.loads((tmp_path / "out/report.json").read_text())["rows"] == N


def test_samples_of_other_questions_are_refused(folder, questions, tmp_path):
    config = one(folder, questions, tmp_path / "out", limit=3)
    evaluation.run(config, session(config, thinker)[0])
    file = tmp_path / "out/samples.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines) + lines[0])
    with pytest.raises(BadInput, match="samples.jsonl:4: sample 0 of 'q0' is there twice"):
        evaluation.run(config, session(config, thinker)[0])
    row = json.loads(lines[0])
    row["prompt_ids"] = row["prompt_ids"][1:]
    file.write_text(json.dumps(row) + "\n" + "".join(lines[1:]))
    with pytest.raises(BadInput, match="sample 0 of 'q0' completes another prompt"):
        evaluation.run(config, session(config, thinker)[0])
    file.write_text("no row\n" + "".join(lines))
    with pytest.raises(BadInput, match="samples.jsonl:1 is not JSON"):
        evaluation.run(config, session(config, thinker)[0])
    other = dataclasses.replace(config, control=BudgetConfig(thinking_token_budget=9))
    with pytest.raises(BadInput, match="control.thinking_token_budget was None, is 9"):
        evaluation.run(other, session(other, thinker)[0])


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"benchmark": "aime26"}, "benchmark='aime26' is neither a file nor one of aime24"),
        ({"grader": "maths"}, "grader='maths' is not known"),
        ({"benchmark": "gpqa_diamond", "grader": "math"}, "grader='math' would write texts of gpqa_diamond"),
        ({"limit": 0}, "limit=0 leaves no question"),
        ({"limit": -1}, "limit=-1 leaves no question"),
        ({"sampling": SamplingConfig(top_p=2.0)}, "sampling.top_p is 2.0"),
        (
            {"control": FreeConfig(), "budgets": (8,)},
            "budgets sets control.thinking_token_budget, which control.kind=free lacks",
        ),
        ({"model": "nowhere/at-all"}, "model=nowhere/at-all is neither a folder nor a hub id"),
        ({"budgets": (8, 8)}, "the sweep has budget-8, budget-8"),
        ({"sampling": SamplingConfig(n=4)}, "4 samples at sampling.temperature=0"),
        ({"method": VoteConfig(n=4)}, "4 samples at sampling.temperature=0"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_any_work(folder, questions, tmp_path, fields, message):
    config = EvalRun(**{"model": folder, "benchmark": questions, "out": str(tmp_path / "out"), **fields})
    with pytest.raises(BadInput, match=message):
        evaluation.run(config)
    assert not (tmp_path / "out").exists()


def test_nothing_of_a_private_benchmark_is_written(folder, tmp_path):
    source = tmp_path / "gpqa_diamond.csv"
    with source.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Question", "Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3))])
        for i in range(4):
            writer.writerow([f"SECRET question {i}", f"SECRET right {i}", *(f"SECRET wrong {i}{j}" for j in range(3))])
    config = EvalRun(
        model=folder,
        benchmark="gpqa_diamond",
        benchmark_source=str(source),
        out=str(tmp_path / "out"),
        budgets=(50, 90),
    )
    script = (lambda request: ("As SECRET question says", "\nSo SECRET right. Answer: B"), {})
    evaluation.run(config, session(config, script[0])[0])
    report.run(ReportRun(reports=(config.out,), out=str(tmp_path / "page")))
    written = [path for path in [*(tmp_path / "out").rglob("*"), *(tmp_path / "page").rglob("*")] if path.is_file()]
    assert len(written) >= 8
    assert not [path for path in written if b"SECRET" in path.read_bytes()]
    rows = records.read_jsonl(tmp_path / "out/budget-50/samples.jsonl")
    assert {row["extracted"] for row in rows} == {"B"} and all(row["token_ids"] for row in rows)
    assert "4 questions of 198" in (tmp_path / "page/index.html").read_text()


def test_sweep_reports_and_their_curve(sweep, tmp_path, capsys):
    config, out = sweep
    assert {path.parent.name for path in out.rglob("report.json")} == {
        *(f"budget-{b}" for b in config.budgets), *(f"ignore-{n}" for n in config.ignores), "vote",
    }  # fmt: skip
    report.run(ReportRun(reports=(str(out),), out=str(tmp_path / "page")))
    shown = capsys.readouterr().out
    assert "budget 16" in shown and "More thinking raised accuracy" in shown
    data = json.loads((tmp_path / "page/scaling.json").read_text())
    assert data["control"]["value"] == 1.0 and 0.8 < data["control"]["low"] < data["control"]["high"] == 1.0
    assert data["scaling"]["low"] > 0 and data["performance"]["value"] == 1.0
    tokens = [point["thinking_tokens"] for point in data["points"]]
    assert tokens == sorted(tokens) and tokens[0] == 0 and data["points"][0]["slope_group"] is None
    budgets = {point["budget"]: point["accuracy"] for point in data["points"] if not point["n_ignore"]}
    assert budgets[8] < budgets[32] < budgets[64]
    assert [vote["votes"] for vote in data["votes"]] == [2, 4, 8]
    totals = [vote["total_tokens"] for vote in data["votes"]]
    assert totals[1] == pytest.approx(2 * totals[0]) and totals[2] == pytest.approx(4 * totals[0])
    assert any("majority vote of" in sentence for sentence in data["findings"])
    png = (tmp_path / "page/scaling.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) > 10_000


def test_page_is_one_file_with_forced_ids_marked(sweep, tmp_path):
    report.run(ReportRun(reports=(str(sweep[1]),), out=str(tmp_path), traces=4))
    page = (tmp_path / "index.html").read_text()
    assert not re.findall(r'src="(?!data:)', page) and "<script" not in page, "it shows without any other file"
    links = [tmp_path / urllib.parse.unquote(link) for link in re.findall(r'href="([^"]*)"', page)]
    assert {link.name for link in links} == {"samples.jsonl", "report.json", "run.json", "scaling.json", "scaling.png"}
    assert all(link.resolve().is_file() for link in links) and len({link.resolve() for link in links}) == 2 * 9 + 3
    assert page.count("<details>") == 4 and "data:image/png;base64," in page
    assert (
        "<mark>&lt;|im_start|&gt;answer</mark>" in page
        or "<mark>\n&lt;|im_start|&gt;answer\nFinal Answer:</mark>" in page
    )
    assert '<span class="think">tttt' in page and "What it says" in page


def test_a_vote_run_is_a_vote_point_and_needs_single_runs_beside_it(sweep, folder, questions, tmp_path):
    drawn = SamplingConfig(temperature=0.7)
    config = one(folder, questions, tmp_path / "out", method=VoteConfig(n=4), sampling=drawn)
    evaluation.run(config, session(config, thinker)[0])
    data = json.loads((tmp_path / "out/report.json").read_text())
    assert data["label"] == "no limit, vote of 4" and data["accuracy"] >= data["accuracy_of_one"]
    assert data["mean_thinking_tokens"] == 4 * 60
    points = summary.points([data])
    assert [(point.votes, point.thinking_tokens[0]) for point in points] == [(2, 120), (4, 240)]
    with pytest.raises(BadInput, match="votes only"):
        report.run(ReportRun(reports=(config.out,), out=str(tmp_path / "page")))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model": "other"}, "the reports have model .*other.*; give those of one"),
        ({"benchmark": "other"}, "the reports have benchmark other and sums; give those of one"),
        ({"per_question": []}, "has 0 questions"),
    ],
)
def test_reports_that_make_no_curve_are_refused(sweep, tmp_path, change, message):
    data = json.loads((sweep[1] / "budget-8/report.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps({**data, **change}))
    with pytest.raises(BadInput, match=message):
        report.run(ReportRun(reports=(str(sweep[1] / "budget-16"), str(tmp_path)), out=str(tmp_path / "page")))


def test_folders_without_reports_are_refused(tmp_path):
    with pytest.raises(BadInput, match="holds no report.json"):
        report.read_reports([str(tmp_path)])
    with pytest.raises(BadInput, match="reports is empty"):
        report.read_reports([])
    for content in ("{", "[]", '{"format": "s1jax.report/0"}'):
        (tmp_path / "report.json").write_text(content)
        with pytest.raises(BadInput, match="no JSON of format s1jax.report/1"):
            report.read_reports([str(tmp_path)])


def points_of(*accuracies, n_ignore=(0, 0)):
    return [
        Point("x", None, (100.0 * (i + 1),) * 40, (100.0 * (i + 1),) * 40, tuple(accuracy), n_ignore=n_ignore[i])
        for i, accuracy in enumerate(accuracies)
    ]


def said_of(points):
    return " ".join(findings(points, scaling.to_json(points)))


def test_findings_say_when_thinking_bought_nothing():
    flat = points_of([1.0, 0.0] * 20, [0.0, 1.0] * 20)
    limited = dataclasses.replace(flat[0], within=(0.9,) * 40)
    said = said_of([limited, flat[1]])
    assert "No effect of more thinking on accuracy can be told from chance: +0.0 points per doubling" in said
    assert "10 % of the rows did not keep" in said
    said = said_of(points_of([1.0] * 40, [0.0] * 20 + [1.0] * 20, n_ignore=(0, 2)))
    assert "More thinking lowered accuracy: -50.0 points" in said
    assert "Ignoring up to 2 ends of thinking hurt: -50.0 points" in said and "for 2 comparisons at once" in said
    assert said_of(flat[:1]) == "No slope can be drawn: 1 of 1 points are left to draw a slope through."


def test_findings_compare_votes_at_equal_tokens():
    single = points_of([1.0] * 10 + [0.0] * 30, [1.0] * 10 + [0.0] * 30)
    vote = dataclasses.replace(single[0], votes=4, total_tokens=(150.0,) * 40, accuracy=(1.0,) * 30 + (0.0,) * 10)
    said = said_of([*single, vote])
    assert "A majority vote of 4 instead of one answer raised accuracy: +50.0 points (95 % interval" in said
    assert "both at 150 total tokens a question" in said
    outside = dataclasses.replace(vote, total_tokens=(900.0,) * 40)
    said = said_of([*single, outside])
    assert "No vote spends as many tokens as the single runs (100 to 200 a question)" in said
    assert "75.0 % with 4 voters and 900 tokens, the best single run 25.0 %" in said
