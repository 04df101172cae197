"""The verb `grade`: completions of any engine and reference answers -> `samples.jsonl` and `report.json`.

It needs no model and imports no JAX. A row of completions is an object with `id`, `text` (or `token_ids`, and a
tokenizer), `gold`, and where they matter `kind` and `sample`; other fields are carried along. Rows of our own
`completions.jsonl` and `samples.jsonl` are such rows.
"""

import collections
import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from s1jax.benchmarks import BENCHMARKS, benchmark
from s1jax.benchmarks.benchmark import Benchmark
from s1jax.config import BadInput, Positive, by_content, free
from s1jax.eval import reading, stats
from s1jax.eval.completions import GivenCompletion, read_rows
from s1jax.grading import compat
from s1jax.grading.grade import KINDS
from s1jax.grading.pool import Grader
from s1jax.records import JsonlWriter, read_jsonl, write_json
from s1jax.runs import places
from s1jax.runs.fingerprint import Content
from s1jax.runs.folder import entered
from s1jax.text.tokens import Tokenizer

SAMPLES, REPORT = "samples.jsonl", "report.json"
FORMAT, ROW_FORMAT = "s1jax.grade_report/1", "s1jax.graded/1"
OWN = ("s1jax.completion/1", "s1jax.sample/1")
CHUNK = 64  # rows that are graded together; a killed run grades at most these again


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradeRun:
    """Completions and what they are compared with.

    Attributes:
      completions: a JSONL file with `id`, `text` or `token_ids`, `gold`, optional `kind` and `sample`.
      kind: how answers are graded, a key of `s1jax.grading.grade.KINDS`, where a row does not say; None: the
        benchmark's, else `math`.
      benchmark: a name of the registry or a file of one's own: its reference answers, by id, instead of `gold`.
      benchmark_source: a file, a folder or a hub id with the questions of a registered benchmark.
      tokenizer: a folder or a hub id, for rows with `token_ids` and no `text`.
      thinking_end: texts that end thinking; the answer follows the last one. None: those of all presets.
      out: where samples and report are written.
      processes: that compare formulas.
    """

    completions: str = by_content()
    kind: str | None = None
    benchmark: str | None = by_content(None)
    benchmark_source: str | None = by_content(None)
    tokenizer: str | None = by_content(None)
    thinking_end: tuple[str, ...] | None = None
    out: str = ""
    processes: Positive = free(1)


def run(config: GradeRun) -> pathlib.Path:
    """Grade what is missing, then report. Returns the folder.

    Raises:
      BadInput: rows, golds or a former run that do not fit, before any work.
    """
    if config.kind is not None and config.kind not in KINDS:
        raise BadInput(f"kind={config.kind!r} is not known; use one of {', '.join(KINDS)}")
    bench = None if config.benchmark is None else _benchmark(config)
    kind = config.kind or (bench.kind if bench else "math")
    config = dataclasses.replace(config, kind=kind)  # which a run is known by
    rows = read_rows(
        config.completions,
        kind=kind,
        golds=None if bench is None else {q.id: q.answer or "" for q in bench.load(config.benchmark_source)},
        tokenizer=None if config.tokenizer is None else Tokenizer.load(config.tokenizer),
        thinking_end=config.thinking_end,
    )
    place = places.place(config.out) / SAMPLES
    if place.is_dir():
        raise BadInput(f"{place} is a folder; remove it, or give another out folder")

    def read_former() -> dict[str, Content]:
        """Under the lock and before anything is written: what was graded must be of these rows."""
        _graded(place, rows)
        return {}

    with entered(config, device="none", contents=read_former) as out, Grader(config.processes) as grader:
        done = _graded(out / SAMPLES, rows)
        missing = [row for row in rows if (row.id, row.sample) not in done]
        with JsonlWriter(out / SAMPLES) as writer:
            for start in range(0, len(missing), CHUNK):
                chunk = missing[start : start + CHUNK]
                verdicts = grader.map([(row.segment, row.gold, row.kind) for row in chunk])
                for row, verdict in zip(chunk, verdicts, strict=True):
                    grades = {**dataclasses.asdict(verdict), "no_answer": verdict.no_answer}
                    done[row.id, row.sample] = written = _written(row, grades, bench)
                    writer.write(written)
        report = _report(rows, done, grader, config, bench)
        write_json(out / REPORT, report)
    _show(report)
    out = places.place(config.out)
    print(f"wrote {out / SAMPLES}", file=sys.stderr)
    return out


def _benchmark(config: GradeRun) -> Benchmark:
    name = str(config.benchmark)
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    if not places.fetched(name).exists():
        raise BadInput(f"benchmark={name!r} is neither a file nor one of {', '.join(BENCHMARKS)}")
    return benchmark.local(name, config.kind)


def _graded(path: pathlib.Path, rows: Sequence[GivenCompletion]) -> dict[tuple[str, int], dict[str, Any]]:
    """Rows that a former start has finished.

    Raises:
      BadInput: a line is no row of ours, or grades another completion or another reference answer.
    """
    wanted = {(row.id, row.sample): row for row in rows}
    done = {}
    if not path.is_file():
        return done
    for number, found in enumerate(read_jsonl(path, allow_empty=True, skip_torn=True), 1):
        key: Any = found.get("id"), found.get("sample")
        is_verdict = isinstance(found.get("correct"), bool) and isinstance(found.get("no_answer"), bool)
        if "extracted" not in found or not is_verdict or key not in wanted:
            raise BadInput(f"{path}:{number} grades no row of the completions; give another out folder")
        if found.get("digest", _digest_of_own(found, wanted[key])) != wanted[key].digest:
            raise BadInput(
                f"{path}:{number}: sample {key[1]} of {key[0]!r} was graded with another text, gold or kind; "
                "give another out folder"
            )
        done[key] = found
    return done


def _digest_of_own(found: Mapping[str, Any], row: GivenCompletion) -> str:
    """Of a row in our own format, which has no digest: its tokens, its gold, and its text where that was written."""
    is_same = all(found.get(name) == row.given.get(name) for name in ("token_ids", "thinking_tokens", "kind"))
    is_same = is_same and found.get("gold") == row.gold and found.get("text") in (row.given.get("text"), "")
    return row.digest if is_same else ""


def _written(row: GivenCompletion, grades: Mapping[str, Any], bench: Benchmark | None) -> dict[str, Any]:
    """The row with its grade; a row of our own stays one. Texts of a private benchmark are left out."""
    given = dict(row.given)
    is_private = bench is not None and bench.private
    if given.get("format") in OWN:
        text = {"text": "", "question": ""} if is_private else {"question": given.get("question", "")}
        return {**given, **text, "gold": row.gold, **grades, "format": OWN[1]}
    if is_private:
        given = {name: given[name] for name in ("token_ids", "thinking_tokens", "finish_reason") if name in given}
    graded = {"id": row.id, "sample": row.sample, "kind": row.kind, "gold": row.gold, **grades, "digest": row.digest}
    return {**given, **graded, "format": ROW_FORMAT}


def _report(
    rows: Sequence[GivenCompletion],
    done: Mapping[tuple[str, int], Mapping[str, Any]],
    grader: Grader,
    config: GradeRun,
    bench: Benchmark | None,
) -> dict[str, Any]:
    """As the report of `eval`, as far as completions alone tell."""
    by_question: dict[str, list[GivenCompletion]] = collections.defaultdict(list)
    for row in sorted(rows, key=lambda row: row.sample):
        by_question[row.id].append(row)
    grades = {id: [done[id, row.sample] for row in of_one] for id, of_one in by_question.items()}
    correct = {id: [float(grade["correct"]) for grade in of_one] for id, of_one in grades.items()}
    votes = {
        id: [None if group is None else str(group) for group in grader.group([g["extracted"] for g in of_one], kind)]
        for id, of_one in grades.items()
        for kind in {by_question[id][0].kind}
    }
    n = min(map(len, correct.values()))
    powers = sorted({*(2**i for i in range(n.bit_length())), n})
    majority = {id: {str(k): stats.majority_at_k(votes[id], correct[id], k) for k in powers} for id in correct}
    upstream = [
        [float(compat.grade(row.text, row.gold, row.kind).correct) for row in of_one] for of_one in by_question.values()
    ]
    accuracy = stats.clustered(list(correct.values()))
    all_grades = [grade for of_one in grades.values() for grade in of_one]
    return {
        "format": FORMAT,
        "benchmark": bench.name if bench else pathlib.Path(config.completions).stem,
        "official_size": bench.size if bench else None,
        "private": bool(bench and bench.private),
        "completions": config.completions,
        "grader": sorted({row.kind for row in rows}),
        "questions": len(correct),
        "samples_per_question": n,
        "accuracy": accuracy.value,
        "interval": {"low": accuracy.low, "high": accuracy.high},
        "accuracy_by_upstream_rules": stats.clustered(upstream).to_dict(),
        "pass_at_k": {
            str(k): _mean([stats.pass_at_k(len(c), int(sum(c)), k) for c in correct.values()]) for k in powers
        },
        "majority_at_k": {str(k): _mean([of_one[str(k)] for of_one in majority.values()]) for k in powers},
        "mean_thinking_tokens": _mean_of(rows, "thinking_tokens"),
        "rows": len(rows),
        "no_answer": sum(grade["no_answer"] for grade in all_grades),
        **reading.counts([(grade["rule"], grade["undecided"]) for grade in all_grades]),
        "truncated": _count_of(rows, "length"),
        "per_question": [
            {"id": id, "accuracy": _mean(of_one), "majority": majority[id]} for id, of_one in correct.items()
        ],
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_of(rows: Sequence[GivenCompletion], name: str) -> float | None:
    """Mean over the questions' means; None where a row lacks the number."""
    found: dict[str, list[float]] = collections.defaultdict(list)
    for row in rows:
        value = row.given.get(name)
        if not isinstance(value, (int, float)):
            return None
        found[row.id].append(float(value))
    return _mean([_mean(values) for values in found.values()])


def _count_of(rows: Sequence[GivenCompletion], reason: str) -> int | None:
    """Rows that ended so; None where a row does not say how it ended."""
    reasons = [row.given.get("finish_reason") for row in rows]
    return None if None in reasons else reasons.count(reason)


def _show(report: Mapping[str, Any]) -> None:
    low, high = report["interval"]["low"], report["interval"]["high"]
    limits = "" if low is None or high is None else f" (95 % interval {100 * low:.1f} to {100 * high:.1f})"
    print(
        f"{report['benchmark']}: {report['questions']} questions, {report['rows']} completions; "
        f"accuracy {100 * report['accuracy']:.1f} %{limits}, no answer {report['no_answer']}"
    )
    print(reading.line([report]))
