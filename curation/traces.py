"""Give every question its trace: its own, one from files of traces, one that a teacher writes now, or none.

Traces are looked up by the hash of the exact question, upstream's key everywhere (data/utils/io_utils.py:109).
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from curation.stage import Candidate, Selection, Stage, Tools, Trace, split
from s1jax.config import BadInput
from s1jax.grading.pool import Grader
from s1jax.records import JsonlWriter, question_id, read_jsonl
from s1jax.tables import load_rows
from s1jax.text.render import columns
from s1jax.text.tokens import Tokenizer


@dataclasses.dataclass(frozen=True)
class TracesConfig:
    """Where traces and answers come from.

    Attributes:
      files: JSONL or Parquet files, folders or hub ids with columns of s1K, s1K-1.1 or ours; the first with one wins.
      teacher: whose columns of s1K-1.1 (`deepseek` or `gemini`).
      solution: the reference solution stands in where there is no trace, with the gold answer as the answer.
      tokenizer: folder or hub id, for lengths in tokens; without one they are in words.
      grade: grade answers that nobody has graded against the gold answer.
    """

    files: tuple[str, ...] = ()
    teacher: str = ""
    solution: bool = False
    tokenizer: str = ""
    grade: bool = True


def select(candidates: Sequence[Candidate], config: TracesConfig, tools: Tools) -> Selection:
    """Drops what still has no trace. Raises BadInput for files of traces that cannot be read."""
    found = _from_files(config)
    completed = [_completed(candidate, found) for candidate in candidates]
    completed = _taught(completed, tools)
    if config.solution:
        completed = [_stand_in(candidate) for candidate in completed]
    selection = split(
        completed, lambda c: None if c.thinking is not None else ("no trace", "neither file nor teacher has one")
    )
    kept = _graded(selection.kept) if config.grade else selection.kept
    return Selection(tuple(_measured(kept, config.tokenizer)), selection.dropped)


def find_trace(row: Mapping[str, Any], where: str, teacher: str = "") -> tuple[Trace | None, bool | None]:
    """Trace and verdict (`correct`, or a `*_grade` of Yes or No) of a row; no trace if a part of it is missing."""
    try:
        example = columns({**row, "question": row.get("question") or "-"}, where=where, teacher=teacher)
    except BadInput:
        return None, None
    name = next((name for name in ("deepseek", "gemini") if teacher in ("", name) and f"{name}_grade" in row), "")
    grade = row["correct"] if isinstance(row.get("correct"), bool) else row.get(f"{name}_grade")
    verdict = {"Yes": True, "No": False, True: True, False: False}.get(grade)
    return Trace(example.thinking, example.answer), verdict


def _from_files(config: TracesConfig) -> dict[str, tuple[Trace, bool | None]]:
    found: dict[str, tuple[Trace, bool | None]] = {}
    for file in config.files:
        for number, row in enumerate(load_rows(file), 1):
            trace, verdict = find_trace(row, f"{file}, row {number}", config.teacher)
            if trace is not None and isinstance(row.get("question"), str):
                found.setdefault(question_id(row["question"]), (trace, verdict))
    return found


def _completed(candidate: Candidate, found: Mapping[str, tuple[Trace, bool | None]]) -> Candidate:
    key = question_id(candidate.question.text)
    if candidate.thinking is not None or key not in found:
        return candidate
    trace, verdict = found[key]
    return dataclasses.replace(candidate, thinking=trace.thinking, answer=trace.answer, correct=verdict)


def _taught(candidates: Sequence[Candidate], tools: Tools) -> list[Candidate]:
    """The candidates with the teacher's traces; each is on disk before the teacher is asked for the next."""
    if tools.teacher is None:
        return list(candidates)
    path = tools.folder / "traces.jsonl"
    with JsonlWriter(path) as writer:  # opened first: it drops a line that a crash cut off
        known = {row["id"]: row for row in read_jsonl(path, allow_empty=True)}
        open_ = [c for c in candidates if c.thinking is None and c.id not in known]
        for number, candidate in enumerate(open_, 1):
            trace = tools.teacher(candidate.question)
            row = {"id": candidate.id, "trace": None if trace is None else dataclasses.asdict(trace)}
            known[candidate.id] = row
            writer.write(row)
            if number % 100 == 0 or number == len(open_):
                tools.progress(f"traces: {number} of {len(open_)} questions asked")
    written = {id: Trace(**row["trace"]) for id, row in known.items() if row["trace"]}
    return [
        dataclasses.replace(c, thinking=written[c.id].thinking, answer=written[c.id].answer)
        if c.thinking is None and c.id in written
        else c
        for c in candidates
    ]


def _stand_in(candidate: Candidate) -> Candidate:
    question = candidate.question
    if candidate.thinking is not None or not question.solution or not question.answer:
        return candidate
    return dataclasses.replace(candidate, thinking=question.solution, answer=question.answer, correct=True)


def _graded(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    open_ = [i for i, c in enumerate(candidates) if c.correct is None and c.question.answer and c.answer]
    items = [(candidates[i].answer or "", candidates[i].question.answer or "", candidates[i].kind) for i in open_]
    with Grader() as grader:
        verdicts = dict(zip(open_, grader.map(items), strict=True))
    return tuple(
        dataclasses.replace(candidate, correct=verdicts[i].correct) if i in verdicts else candidate
        for i, candidate in enumerate(candidates)
    )


def _measured(candidates: Sequence[Candidate], tokenizer: str) -> Iterator[Candidate]:
    loaded = Tokenizer.load(tokenizer) if tokenizer else None
    for candidate in candidates:
        thinking = candidate.thinking or ""
        length = len(loaded.encode(thinking)) if loaded else len(thinking.split())
        yield dataclasses.replace(candidate, thinking_length=length)


STAGE = Stage(select)
