"""The verb `grade`: completions of any engine and reference answers -> `samples.jsonl` and `report.json`.

It needs no model and imports no JAX. A row of completions is an object with `id`, `text` (or `token_ids`, and a
tokenizer), `gold`, and where they matter `kind` and `sample`; other fields are carried along. Rows of our own
`completions.jsonl` and `samples.jsonl` are such rows.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from s1jax import records
from s1jax.benchmarks import BENCHMARKS, benchmark
from s1jax.benchmarks.benchmark import Benchmark
from s1jax.config import BadInput, free
from s1jax.eval import reading, stats
from s1jax.grading import compat
from s1jax.grading.grade import KINDS
from s1jax.grading.pool import Grader
from s1jax.records import JsonlWriter, read_jsonl, write_json
from s1jax.runs.folder import open_run
from s1jax.runs.lock import locked
from s1jax.text.tokens import PRESETS, Tokenizer

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

    completions: str
    kind: str | None = None
    benchmark: str | None = None
    benchmark_source: str | None = None
    tokenizer: str | None = None
    thinking_end: tuple[str, ...] | None = None
    out: str = ""
    processes: int = free(1)


@dataclasses.dataclass(frozen=True)
class Row:
    """One completion to grade.

    Attributes:
      text: the whole response, thinking included.
      segment: what follows the end of thinking.
      given: the row as it was read.
    """

    id: str
    sample: int
    text: str
    segment: str
    gold: str
    kind: str
    given: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Of what the grade depends on."""
        return hashlib.sha256(json.dumps([self.text, self.gold, self.kind]).encode("utf-8")).hexdigest()[:16]


def run(config: GradeRun) -> pathlib.Path:
    """Grade what is missing, then report. Returns the folder.

    Raises:
      BadInput: rows, golds or a former run that do not fit, before any work.
    """
    if config.kind is not None and config.kind not in KINDS:
        raise BadInput(f"kind={config.kind!r} is not known; use one of {', '.join(KINDS)}")
    if config.processes < 1:
        raise BadInput(f"processes={config.processes} grade nothing; give at least 1")
    bench = None if config.benchmark is None else _benchmark(config)
    rows = read_rows(config, bench)
    with _folder(config) as out, Grader(config.processes) as grader:
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
    return out


@contextlib.contextmanager
def _folder(config: GradeRun) -> Iterator[pathlib.Path]:
    """The run's folder, locked before anything else in it is touched."""
    out = pathlib.Path(config.out)
    if out.exists() and not out.is_dir():
        raise BadInput(f"out={out} is a file; give the path of a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"out={out} cannot be made ({error.strerror}); give the path of a folder") from None
    with locked(out):
        yield open_run(config, device="none")


def _benchmark(config: GradeRun) -> Benchmark:
    name = str(config.benchmark)
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    if not pathlib.Path(name).exists():
        raise BadInput(f"benchmark={name!r} is neither a file nor one of {', '.join(BENCHMARKS)}")
    return benchmark.local(name, config.kind)


def read_rows(config: GradeRun, bench: Benchmark | None) -> list[Row]:
    """The rows of the file, checked.

    Raises:
      BadInput: a line is no object, or lacks an id, a text or a gold; an unknown kind; an (id, sample) twice.
    """
    golds = None
    if bench is not None:
        golds = {question.id: question.answer or "" for question in bench.load(config.benchmark_source)}
    tokenizer = None if config.tokenizer is None else Tokenizer.load(config.tokenizer)
    rows: list[Row] = []
    seen: dict[tuple[str, int], int] = {}
    for number, given in enumerate(read_jsonl(config.completions), 1):
        where = f"{config.completions} row {number}"
        row = _row(given, where, config, bench, golds, tokenizer)
        if (first := seen.setdefault((row.id, row.sample), number)) != number:
            raise BadInput(
                f"{where}: sample {row.sample} of id {row.id!r} stands in row {first} too; give samples of one id "
                "different numbers in the field 'sample', other completions different ids"
            )
        rows.append(row)
    return rows


def _row(
    given: Mapping[str, Any],
    where: str,
    config: GradeRun,
    bench: Benchmark | None,
    golds: Mapping[str, str] | None,
    tokenizer: Tokenizer | None,
) -> Row:
    id = given.get("id", records.question_id(given["question"]) if isinstance(given.get("question"), str) else None)
    if not isinstance(id, (str, int)) or isinstance(id, bool):
        raise BadInput(f"{where} has the id {id!r}; give it an id, or the question it answers")
    sample = given.get("sample", 0)
    if not isinstance(sample, int) or isinstance(sample, bool) or sample < 0:
        raise BadInput(f"{where}: sample is {sample!r}; it must be a whole number from 0")
    kind = given.get("kind") or config.kind or (bench.kind if bench else "math")
    if kind not in KINDS:
        raise BadInput(f"{where}: kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    gold = given.get("gold") if golds is None else golds.get(str(id))
    if isinstance(gold, bool) or not isinstance(gold, (str, int, float)) or not str(gold).strip():
        hint = "give every row a gold, or benchmark=NAME"
        hint = (
            hint if golds is None else f"no question of {config.benchmark} has this id; give the benchmark of the rows"
        )
        raise BadInput(f"{where}: id {str(id)!r} has no reference answer (gold is {gold!r}); {hint}")
    text = _text(given, where, tokenizer)
    return Row(str(id), sample, text, segment_of(given, text, config.thinking_end), str(gold), kind, given)


def _text(given: Mapping[str, Any], where: str, tokenizer: Tokenizer | None) -> str:
    text, ids = given.get("text"), given.get("token_ids")
    if isinstance(text, str) and (text or not ids):
        return text
    if not isinstance(ids, list) or not all(isinstance(id, int) and not isinstance(id, bool) for id in ids):
        raise BadInput(f"{where} has neither a text nor token_ids (its fields: {', '.join(given)}); give one of them")
    if tokenizer is None:
        raise BadInput(f"{where} has token_ids and no text; give tokenizer=DIR to read them")
    if any(not 0 <= id < tokenizer.size for id in ids):
        raise BadInput(
            f"{where} has the token {max(ids)}, the tokenizer {tokenizer.size} tokens; give its own tokenizer"
        )
    return tokenizer.decode(ids)


def segment_of(given: Mapping[str, Any], text: str, thinking_end: Sequence[str] | None = None) -> str:
    """What follows the end of thinking: all of a text without a thinking header, "" if thinking did not end."""
    ids, n_thinking = given.get("token_ids"), given.get("thinking_tokens")
    if isinstance(ids, list) and isinstance(n_thinking, int) and 0 < len(ids) <= n_thinking:
        return ""
    ends = [marks.answer_start.strip() for marks in PRESETS.values()] if thinking_end is None else thinking_end
    end = max((found + len(mark) for mark in ends if mark and (found := text.rfind(mark)) >= 0), default=-1)
    if end >= 0:
        return text[end:]
    return "" if any(marks.thinking_start.strip() in text for marks in PRESETS.values()) else text


def _graded(path: pathlib.Path, rows: Sequence[Row]) -> dict[tuple[str, int], dict[str, Any]]:
    """Rows that a former start has finished.

    Raises:
      BadInput: a line is no row of ours, or grades another completion or another reference answer.
    """
    wanted = {(row.id, row.sample): row for row in rows}
    done = {}
    if not path.is_file():
        return done
    with JsonlWriter(path):  # drops a line that a crash cut off
        stored = read_jsonl(path, allow_empty=True)
    for number, found in enumerate(stored, 1):
        key: Any = found.get("id"), found.get("sample")
        if "extracted" not in found or key not in wanted:
            raise BadInput(f"{path}:{number} grades no row of the completions; give another out folder")
        if found.get("digest", _digest_of_own(found, wanted[key])) != wanted[key].digest:
            raise BadInput(
                f"{path}:{number}: sample {key[1]} of {key[0]!r} was graded with another text, gold or kind; "
                "give another out folder"
            )
        done[key] = found
    return done


def _digest_of_own(found: Mapping[str, Any], row: Row) -> str:
    """Of a row in our own format, which has no digest: its tokens and its gold tell."""
    is_same = found.get("token_ids") == row.given.get("token_ids") and found.get("gold") == row.gold
    return row.digest if is_same else ""


def _written(row: Row, grades: Mapping[str, Any], bench: Benchmark | None) -> dict[str, Any]:
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
    rows: Sequence[Row],
    done: Mapping[tuple[str, int], Mapping[str, Any]],
    grader: Grader,
    config: GradeRun,
    bench: Benchmark | None,
) -> dict[str, Any]:
    """As the report of `eval`, as far as completions alone tell."""
    by_question: dict[str, list[Row]] = collections.defaultdict(list)
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


def _mean_of(rows: Sequence[Row], name: str) -> float | None:
    """Mean over the questions' means; None where a row lacks the number."""
    found: dict[str, list[float]] = collections.defaultdict(list)
    for row in rows:
        value = row.given.get(name)
        if not isinstance(value, (int, float)):
            return None
        found[row.id].append(float(value))
    return _mean([_mean(values) for values in found.values()])


def _count_of(rows: Sequence[Row], reason: str) -> int | None:
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
