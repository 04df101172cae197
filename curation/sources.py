"""One loader for each source of questions, under the names that s1 gives them (data/collect_data.py of 77272c6).

A loader reads one row: it gives a candidate, or a text that says why the row is passed over (s1's own rule of that
source). Domains are the sources' own subjects; s1 asked a language model for one of 61 classes.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from curation.stage import Candidate, Dropped, Selection
from curation.traces import find_trace
from s1jax.config import BadInput, Positive
from s1jax.grading.grade import KINDS, boxed
from s1jax.records import Question, question_id
from s1jax.tables import load_rows, shared_data

RawRow = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One entry of `sources`.

    Attributes:
      kind: how its rows are read: a key of `LOADERS`.
      path: file, folder or hub id (`subset`, `split`); by default the loader's files in `<shared>/data/pool`.
      name: the source's name for kind `rows`, where a row has none.
      answer_kind: how its answers are graded (a key of `s1jax.grading.grade.KINDS`); by default the loader's choice.
      limit: at most so many rows, from the first.
      split: of a hub data set.
      subset: configuration of a hub data set that has several.
    """

    kind: str = "rows"
    path: str = ""
    name: str = ""
    answer_kind: str = ""
    limit: Positive | None = None
    split: str = "train"
    subset: str | None = None


@dataclasses.dataclass(frozen=True)
class Loader:
    """`files`: where its rows are by default, below the shared data. `read` gets a row and the name of its file."""

    files: tuple[str, ...]
    read: Callable[[RawRow, str], Candidate | str]


def load(source: SourceConfig) -> Selection:
    """All rows of a source; those that its loader passes over are dropped with the reason.

    Raises BadInput: an unknown kind, a missing file, or a row that is not what the loader reads.
    """
    if source.kind not in LOADERS:
        raise BadInput(f"sources: kind {source.kind!r} is not known; the kinds are {', '.join(LOADERS)}")
    if source.answer_kind and source.answer_kind not in KINDS:
        raise BadInput(f"sources: answer_kind {source.answer_kind!r} is not known; the kinds are {', '.join(KINDS)}")
    if source.limit is not None and source.limit < 1:
        raise BadInput(f"sources: limit={source.limit} leaves no row of {source.kind}; give at least 1")
    loader = LOADERS[source.kind]
    kept, dropped = [], []
    for path, number, row in _rows(source, loader):
        where = f"{path}, row {number}"
        try:
            read = loader.read(row, path)
            _check(read)
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            raise BadInput(f"{where} is no row of kind {source.kind!r} ({error!r}); use kind rows or mend it") from None
        if isinstance(read, str):
            dropped.append(Dropped(f"{path}#{number}", source.name or source.kind, "source", read))
        else:
            kept.append(_labelled(read, source))
    return Selection(tuple(kept), tuple(dropped))


def _check(read: Candidate | str) -> None:
    if isinstance(read, str):
        return
    if read.kind not in KINDS:
        raise ValueError(f"kind {read.kind!r} is none of {', '.join(KINDS)}")
    for name, value in (("source", read.question.source), ("domain", read.question.domain)):
        if not isinstance(value, str | None):
            raise TypeError(f"{name} is {value!r}, not a text")


def _rows(source: SourceConfig, loader: Loader) -> list[tuple[str, int, dict[str, Any]]]:
    if not source.path and not loader.files:
        raise BadInput(f"sources: kind {source.kind!r} needs a path; give a file, a folder or a hub id")
    files = {source.path: source.path} if source.path else {file: str(shared_data() / file) for file in loader.files}
    rows = [
        (name, number, row)
        for name, path in files.items()
        for number, row in enumerate(load_rows(path, split=source.split, subset=source.subset), 1)
    ]
    return rows[: source.limit]


def _labelled(candidate: Candidate, source: SourceConfig) -> Candidate:
    question = candidate.question
    if not question.source:
        question = dataclasses.replace(question, source=source.name or source.path or source.kind)
    origin = source.name or f"{source.kind} {source.path}".strip()
    kind = source.answer_kind or candidate.kind
    return dataclasses.replace(candidate, question=question, origin=origin, kind=kind)


def _candidate(
    text: str,
    source: str,
    *,
    answer: str | None = None,
    solution: str | None = None,
    domain: str | None = None,
    choices: Sequence[str] | None = None,
    kind: str = "math",
) -> Candidate | str:
    if not text.strip():
        return "no question"
    options = tuple(choices) if choices else None
    question = Question(question_id(text), text, answer or None, options, solution or None, source, domain or None)
    return Candidate(question, kind=kind)


def _math(row: RawRow, file: str) -> Candidate | str:
    source = f"simplescaling/openaimath/{row['type']}"
    answer = boxed(row["solution"])
    return _candidate(row["problem"], source, answer=answer, solution=row["solution"], domain=row["type"])


def _aime(row: RawRow, file: str) -> Candidate | str:
    text = row.get("problem") or row["Question"]
    answer = str(row.get("answer") or row["Answer"])
    source = "qq8933/AIME_1983_2024"
    return _candidate(text, source, answer=answer, solution=row.get("solution"), domain="AIME", kind="aime")


def _omni_math(row: RawRow, file: str) -> Candidate | str:
    domains = row["domain"]
    subject = domains[0].split(" -> ")[1] if domains and " -> " in domains[0] else None
    source = "KbsdJames/Omni-MATH"
    return _candidate(row["problem"], source, answer=row["answer"], solution=row["solution"], domain=subject)


def _olympiadbench(row: RawRow, file: str) -> Candidate | str:
    """Upstream leaves the context out, and takes the first solution only."""
    text = f"{row['context']}\n\n{row['question']}" if row.get("context") else row["question"]
    answer = ", ".join(row["final_answer"] or ())
    solution = row["solution"][0] if row["solution"] else None
    source = "Hothan/OlympiadBench/Open-ended/Math"
    return _candidate(text, source, answer=answer, solution=solution, domain=row["subfield"])


def _agieval(row: RawRow, file: str) -> Candidate | str:
    part = pathlib.PurePath(file).stem.removeprefix("agieval_").replace("-", "_")
    other = row.get("other") or {}
    if part == "math" and other.get("level") != 5:
        return f"level {other.get('level')}, not 5"
    text = "\n".join(row.get("options") or ())
    text = row["question"] + ("\n" + text if text else "")
    text = f"{row['passage'].strip()}\n\n{text}" if (row.get("passage") or "").strip() else text
    source = f"baber/agieval/{ {'math': 'math_agieval'}.get(part, part) }"
    answer, kind = (row["label"], "letter") if row.get("options") else (row["answer"], "math")
    return _candidate(
        text, source, answer=answer, solution=other.get("solution"), domain=part, choices=row.get("options"), kind=kind
    )


def _theoremqa(row: RawRow, file: str) -> Candidate | str:
    if row["Picture"]:
        return "it needs a picture"
    source = f"TIGER-Lab/TheoremQA/{row['Answer_type']}"
    kind = "exact" if row["Answer_type"] in ("bool", "option") else "math"
    answer = str(row["Answer"]).strip("()") if kind == "exact" else str(row["Answer"])
    return _candidate(row["Question"], source, answer=answer, domain=row["subfield"], kind=kind)


def _jeebench(row: RawRow, file: str) -> Candidate | str:
    source = f"daman1209arora/jeebench/{row['subject']}"
    kind = {"MCQ": "letter", "MCQ(multiple)": "exact", "Integer": "integer"}.get(row["type"], "math")
    return _candidate(row["question"], source, answer=row["gold"], domain=row["subject"], kind=kind)


def _scieval(row: RawRow, file: str) -> Candidate | str:
    source = f"OpenDFM/SciEval/{row['category']}/{row['type']}/{row['task_name']}"
    kind = "letter" if row["type"] == "multiple-choice" else "exact"
    answer = ", ".join(map(str, row["answer"] or ()))
    return _candidate(row["question"], source, answer=answer, domain=row["category"], kind=kind)


def _livecodebench(row: RawRow, file: str) -> Candidate | str:
    text = row["prompt"].partition("Question: ")[2] or row["prompt"]
    return _candidate(text, "LiveCodeBench/release_v5", domain="coding")


def _rows_of_ours(row: RawRow, file: str) -> Candidate | str:
    """Rows of ours, of s1K and of s1K-1.1: question, and whatever of trace, gold, domain and verdicts they have."""
    text = row.get("question")
    if not isinstance(text, str) or not text.strip():
        return "no question"
    trace, correct = find_trace(row, file)
    gold = row["gold"] if row.get("gold") is not None else _final_answer(row.get("solution") or "")
    question = Question(
        id=str(row["id"]) if row.get("id") is not None else question_id(text),
        text=text,
        answer=None if gold is None else str(gold),
        solution=row.get("solution"),
        source=row.get("source") or row.get("source_type") or "",
        domain=row.get("domain"),
    )
    return Candidate(
        question,
        kind=row.get("kind") or "math",
        thinking=trace.thinking if trace else None,
        answer=trace.answer if trace else None,
        correct=correct,
        verdicts=_verdicts(row),
    )


def _final_answer(solution: str) -> str | None:
    """s1K's column `solution` holds a worked solution, or (AIME, multiple choice) the answer alone."""
    alone = solution.strip()
    return boxed(solution) or (alone if alone and len(alone.split()) == 1 and len(alone) <= 40 else None)


def _transcripts(row: RawRow, file: str) -> Candidate | str:
    """Generated chats in s1's format (problem, ground_truth, model_response, is_correct).

    Where the chat breaks off within thinking, the answer is made from the last box of the thinking.
    """
    _, opened, rest = row["model_response"].partition("<|im_start|>think\n")
    thinking, _, answer = rest.partition("<|im_start|>answer")
    final = boxed(thinking)
    answer = answer.removesuffix("<|im_end|>").strip() or (f"Final Answer: \\boxed{{{final}}}" if final else "")
    if not opened or not answer:
        return "no thinking with an answer"
    text = row["problem"]
    question = Question(question_id(text), text, answer=str(row["ground_truth"]), source="traces")
    return Candidate(question, thinking=thinking.strip(), answer=answer, correct=row["is_correct"])


def _verdicts(row: RawRow) -> dict[str, float]:
    """`verdicts` (solver -> share of right attempts), and upstream's columns `isqwen7bcorrect`, `isqwen32bcorrect`."""
    named = {name: row[f"is{name}correct"] for name in ("qwen7b", "qwen32b") if row.get(f"is{name}correct") is not None}
    return {name: float(rate) for name, rate in {**named, **(row.get("verdicts") or {})}.items()}


AGIEVAL = ("aqua_rat", "logiqa_en", "lsat_ar", "lsat_lr", "lsat_rc", "math", "sat_en", "sat_math")
LOADERS: dict[str, Loader] = {
    "math": Loader(("pool/math_test.jsonl",), _math),
    "aime": Loader(("pool/aime_1983_2023.jsonl", "pool/aime_1983_2024_qa.jsonl"), _aime),
    "omni_math": Loader(("pool/omni_math_rule.jsonl",), _omni_math),
    "olympiadbench": Loader(("pool/olympiadbench_oe_to_maths_en.jsonl",), _olympiadbench),
    "agieval": Loader(tuple(f"pool/agieval_{part}.jsonl" for part in AGIEVAL), _agieval),
    "theoremqa": Loader(("pool/theoremqa.jsonl",), _theoremqa),
    "jeebench": Loader(("pool/jeebench.jsonl",), _jeebench),
    "scieval": Loader(("pool/scieval_valid.jsonl",), _scieval),
    "livecodebench": Loader(("pool/livecodebench_v5_prompts.jsonl",), _livecodebench),
    "s1k": Loader(("s1k/s1k_1000.jsonl",), _rows_of_ours),
    "s1k_traces": Loader(("s1k/s1k_full_rows.jsonl",), _rows_of_ours),
    "transcripts": Loader(("traces/qwen25_3b_budget_forcing_wait.jsonl",), _transcripts),
    "rows": Loader((), _rows_of_ours),
}
