"""From graded samples to a report, and from reports to points of a curve. Plain data; no files."""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from s1jax import control as controls
from s1jax.config import BadInput, to_dict
from s1jax.engine.sampling import SamplingConfig
from s1jax.eval import reading, scaling, stats
from s1jax.grading import compat
from s1jax.grading.pool import Grader
from s1jax.methods import METHODS
from s1jax.methods.method import Mark
from s1jax.records import Sample

FORMAT = "s1jax.report/1"
SAMPLES, REPORT = "samples.jsonl", "report.json"
DIFFERENCES = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to answer all questions.

    Attributes:
      name: of its folder; "" for the only setting of a run.
      control, sampling, method: see `s1jax.methods.session.ModelRun`.
    """

    name: str
    control: Any
    sampling: SamplingConfig
    method: Any

    @property
    def n_samples(self) -> int:
        """Samples of each question. Raises BadInput for settings that contradict each other."""
        return METHODS[self.method.kind].samples(self.method, self.sampling)

    @property
    def label(self) -> str:
        """What a reader calls the setting."""
        parts = [controls.of(self.control).label(self.control)]
        if self.method.kind != "single":
            parts.append(f"{self.method.kind} of {self.n_samples}")
        return ", ".join(parts)


@dataclasses.dataclass(frozen=True)
class Score:
    """What a report needs of one sample; its tokens stay on disk.

    Attributes:
      vote: the answer that it votes for, spelled as the first equal one of its question; None without an answer.
      is_right_upstream: by upstream's rules (`s1jax.grading.compat`).
      total_tokens: of thinking and answer.
    """

    id: str
    sample: int
    correct: bool
    vote: str | None
    is_right_upstream: bool
    thinking_tokens: int
    total_tokens: int
    n_ignored: int
    finish_reason: str
    thinking_finish_reason: str | None
    rule: str | None = None
    undecided: bool = False


def score(sample: Sample, kind: str, decode: Callable[[Sequence[int]], str]) -> Score:
    """The score of a graded sample; `decode` gives upstream's rules the whole response, which they read."""
    return Score(
        id=sample.id,
        sample=sample.sample,
        correct=sample.correct,
        vote=sample.extracted,
        is_right_upstream=compat.grade(decode(_without_stop(sample)), sample.gold or "", kind).correct,
        thinking_tokens=sample.thinking_tokens,
        total_tokens=len(sample.token_ids),
        n_ignored=sample.extra.get("n_ignored", 0),
        finish_reason=sample.finish_reason,
        thinking_finish_reason=sample.thinking_finish_reason,
        rule=sample.rule,
        undecided=sample.undecided,
    )


def with_votes(scores: Sequence[Score], kind: str, grader: Grader) -> list[Score]:
    """The scores with equal answers of a question under one spelling, decided in the order of its samples."""
    by_question: dict[str, list[Score]] = collections.defaultdict(list)
    for one in sorted(scores, key=lambda one: one.sample):
        by_question[one.id].append(one)
    votes = {}
    for of_one in by_question.values():
        answers = [one.vote for one in of_one]
        for one, first in zip(of_one, grader.group(answers, kind), strict=True):
            votes[one.id, one.sample] = None if first is None else answers[first]
    return [dataclasses.replace(one, vote=votes[one.id, one.sample]) for one in scores]


def is_within(thinking_tokens: int, control: Any) -> bool | None:
    """So many tokens of thinking keep to the control's limits; None where there are none."""
    limits = controls.of(control).thinking_limits(control)
    return None if limits is None else limits[0] <= thinking_tokens <= limits[1]


def summarise(scores: Sequence[Score], setting: Setting, kind: str, **described: Any) -> dict[str, Any]:
    """The content of `report.json` for all samples of one setting.

    Args:
      scores: every question with the same number of samples.
      kind: how they were graded.
      described: benchmark, model, seed, ....
    """
    by_question: dict[str, list[Score]] = collections.defaultdict(list)
    for one in scores:
        by_question[one.id].append(one)
    rows = [_question(id, of_one, setting) for id, of_one in by_question.items()]
    correct = [[float(one.correct) for one in of_one] for of_one in by_question.values()]
    upstream = stats.clustered([[float(one.is_right_upstream) for one in of_one] for of_one in by_question.values()])
    is_joint = METHODS[setting.method.kind].joint
    accuracy = stats.clustered([[row["accuracy"]] for row in rows] if is_joint else correct)
    n = min(map(len, correct))
    within = [verdict for one in scores if (verdict := is_within(one.thinking_tokens, setting.control)) is not None]
    return {
        "format": FORMAT,
        **described,
        "label": setting.label,
        "control": to_dict(setting.control),
        "method": to_dict(setting.method),
        "sampling": to_dict(setting.sampling),
        "grader": kind,
        "questions": len(rows),
        "samples_per_question": n,
        "accuracy": accuracy.value,
        "interval": {"low": accuracy.low, "high": accuracy.high},
        "accuracy_of_one": stats.clustered(correct).value,
        "accuracy_by_upstream_rules": upstream.to_dict(),
        "pass_at_k": {str(k): _mean(stats.pass_at_k(len(c), int(sum(c)), k) for c in correct) for k in powers(n)},
        "majority_at_k": {str(k): _mean(row["majority"][str(k)] for row in rows) for k in powers(n)},
        "mean_thinking_tokens": _mean(row["thinking_tokens"] for row in rows),
        "mean_total_tokens": _mean(row["total_tokens"] for row in rows),
        "within_budget": _mean(within) if within else None,
        "rows": len(scores),
        "no_answer": sum(one.vote is None for one in scores),
        **reading.counts([(one.rule, one.undecided) for one in scores]),
        "truncated": sum(one.finish_reason == "length" for one in scores),
        "finish_reasons": dict(collections.Counter(one.finish_reason for one in scores)),
        "thinking_finish_reasons": dict(collections.Counter(str(one.thinking_finish_reason) for one in scores)),
        "ends_ignored": sum(one.n_ignored for one in scores),
        "samples_to_show": [_plan(correct, points) for points in DIFFERENCES],
        "per_question": rows,
    }


def powers(n: int) -> list[int]:
    """1, 2, 4, ... up to n, and n itself."""
    return sorted({*(2**i for i in range(n.bit_length())), n})


def _question(id: str, scores: Sequence[Score], setting: Setting) -> dict[str, Any]:
    marks = [Mark(one.vote, one.correct, one.thinking_tokens, one.total_tokens) for one in scores]
    outcome = METHODS[setting.method.kind].outcome(marks)
    votes, correct = [mark.vote for mark in marks], [float(mark.correct) for mark in marks]
    within = [is_within(one.thinking_tokens, setting.control) for one in scores]
    return {
        "id": id,
        **dataclasses.asdict(outcome),
        "within": None if within[0] is None else _mean(within),
        "majority": {str(k): stats.majority_at_k(votes, correct, k) for k in powers(len(marks))},
    }


def _without_stop(sample: Sample) -> Sequence[int]:
    """The tokens without a final EOS, which upstream's engine does not put into the text."""
    n_uncounted = len(sample.token_ids) - sample.answer_offset - sample.answer_tokens
    return sample.token_ids[:-1] if sample.finish_reason == "stop" and n_uncounted == 1 else sample.token_ids


def _plan(correct: Sequence[Sequence[float]], points: int) -> dict[str, Any]:
    plan = stats.samples_needed(correct, points / 100)
    return {
        "points": points,
        "samples": plan.total,
        "samples_per_question": plan.per_question,
        "noise_is_assumed": plan.assumed,
    }


def _mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


def points(reports: Sequence[Mapping[str, Any]]) -> list[scaling.Point]:
    """Points of the curve: every setting, and the majority votes of 2, 4, ... of its samples.

    Raises:
      BadInput: the reports are of different benchmarks, models or questions.
    """
    for name in ("benchmark", "model"):
        values = list(dict.fromkeys(report[name] for report in reports))
        if len(values) > 1:
            raise BadInput(
                f"the reports have {name} {' and '.join(map(str, values))}; give those of one, for one curve"
            )
    ids = [row["id"] for row in reports[0]["per_question"]]
    found = []
    for report in reports:
        rows = {row["id"]: row for row in report["per_question"]}
        if not ids or set(rows) != set(ids):
            raise BadInput(
                f"report {report['label']!r} has {len(rows)} questions, {reports[0]['label']!r} has {len(ids)}, "
                "not the same ones; evaluate all settings on the same questions"
            )
        found += _points_of(report, [rows[id] for id in ids])
    return found


def _points_of(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[scaling.Point]:
    control, n = report["control"], report["samples_per_question"]
    budget = control.get("thinking_token_budget")
    is_joint = METHODS[report["method"]["kind"]].joint
    each = "" if budget in (None, -1) else f", budget {budget} each"

    def point(voters: int, accuracy: Sequence[float], times: float) -> scaling.Point:
        return scaling.Point(
            label=report["label"] if voters == 1 else f"majority of {voters}{each}",
            budget=None if budget == -1 else budget,
            n_ignore=control.get("thinking_n_ignore", 0),
            thinking_tokens=tuple(times * row["thinking_tokens"] for row in rows),
            total_tokens=tuple(times * row["total_tokens"] for row in rows),
            accuracy=tuple(accuracy),
            within=None if voters > 1 or rows[0]["within"] is None else tuple(row["within"] for row in rows),
            votes=voters,
        )

    spent = n if is_joint else 1  # what the rows' tokens are the sum of
    found = [] if is_joint else [point(1, [row["accuracy"] for row in rows], 1.0)]
    return found + [point(k, [row["majority"][str(k)] for row in rows], k / spent) for k in powers(n) if k > 1]
