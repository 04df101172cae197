"""What a benchmark is: where its questions are, how they are asked, how answers are graded. No JAX, no model."""

import collections
import csv
import dataclasses
import hashlib
import itertools
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from s1jax import records, tables
from s1jax.config import BadInput
from s1jax.grading.grade import KINDS
from s1jax.records import Question
from s1jax.runs import places
from s1jax.text.formats import QUESTIONS
from s1jax.text.turns import read_turns

LETTERS = "ABCDEFGHIJ"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A set of questions with one way to ask and one way to grade them.

    Attributes:
      name: as in the registry.
      kind: how answers are graded, a key of `s1jax.grading.grade.KINDS`.
      size: questions in the official set, None if there is none; a report says so when it holds fewer.
      hub: data set id, configuration and split.
      file: name of its file in a folder of benchmarks.
      read: one row of the data set -> Question. Raises BadInput for a row that lacks something.
      prompt: the user message for a question.
      private: the authors ask that no text of it is published: questions and model texts stay out of every file.
      home: file of a benchmark that is not in the registry.
    """

    name: str
    kind: str
    size: int | None
    hub: tuple[str, str | None, str]
    file: str
    read: Callable[[Mapping[str, Any]], Question]
    prompt: Callable[[Question], str]
    private: bool = False
    home: str | None = None

    def load(self, source: str | None = None) -> tuple[Question, ...]:
        """The questions, in order, from a file, a folder with `file` in it, or a hub id.

        Args:
          source: by default `home`, else the folder `data/benchmarks` of `S1JAX_SHARED` (by default `shared` beside the
            repository) if it has `file`, else the hub.

        Raises:
          BadInput: nothing there, a row that lacks something, or an id twice.
        """
        where = source or self.home or _shared_file(self.file) or self.hub[0]
        questions = []
        for number, row in enumerate(self._rows(where), 1):
            try:
                questions.append(self.read(row))
            except KeyError as error:
                raise BadInput(
                    f"{where} row {number} has no field {error} (it has {', '.join(map(str, row))}); "
                    f"is it a file of {self.name}?"
                ) from None
        return tuple(records.unique(questions, where))

    def _rows(self, where: str) -> Iterable[Mapping[str, Any]]:
        path = places.fetched(where).expanduser()
        if path.is_dir() and (path / self.file).is_file():
            path = path / self.file
        if path.suffix == ".csv" and path.is_file():
            try:
                with path.open(encoding="utf-8", newline="") as file:
                    return list(csv.DictReader(file))
            except (UnicodeDecodeError, csv.Error) as error:
                raise BadInput(f"{path} is no CSV in UTF-8 ({error}); write it again") from None
        if path.exists() or path.suffix in tables.SUFFIXES:
            return tables.load_rows(path)
        _, subset, split = self.hub
        try:
            return tables.load_rows(where, split=split, subset=subset)
        except BadInput as error:
            raise BadInput(f"{error}; give benchmark_source=FILE") from None


def _shared_file(name: str) -> str | None:
    path = tables.shared_data() / "benchmarks" / name
    return str(path) if path.is_file() else None


def question_only(question: Question) -> str:
    """The question and nothing else: no instruction, no system text (upstream's way)."""
    return question.text


def lettered(question: Question) -> str:
    """The question, an empty line, and one `A) ...` a choice (simplescaling/s1@77272c6 tasks/gpqa/openai/utils.py)."""
    choices = question.choices or ()
    return "\n".join(
        [question.text, "", *(f"{letter}) {text}" for letter, text in zip(LETTERS, choices, strict=False))]
    )


def shuffled(text: str, choices: Iterable[str], correct: int) -> tuple[tuple[str, ...], str]:
    """Choices in an order that is a hash of the question, and the letter of the correct one.

    The order depends on nothing else: not on other questions, a global generator, or the order of loading.
    """
    choices = tuple(choices)
    orders = list(itertools.permutations(range(len(choices))))
    order = orders[int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") % len(orders)]
    return tuple(choices[i] for i in order), LETTERS[order.index(correct)]


def first_field(row: Mapping[str, Any], *names: str) -> Any:
    """The first of these fields that the row has. Raises KeyError with the first name."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise KeyError(names[0])


def row_id(row: Mapping[str, Any], text: str) -> str:
    """The row's own id, or the hash of the question."""
    given = row.get("id", row.get("unique_id"))
    return records.question_id(text) if given is None else str(given)


def local(path: str, kind: str | None = None) -> Benchmark:
    """A benchmark of one's own: rows with `question` (`prompt`, `messages`) and `answer`, optional `id` and `choices`.

    Args:
      kind: how answers are graded; by default `letter` if the rows have choices (the answer is then a letter, the text
        of a choice, or its index), else `math`.

    Raises:
      BadInput: no such file, an unknown kind, or rows with and without choices.
    """
    if kind is not None and kind not in KINDS:
        raise BadInput(f"grader={kind!r} is not known; use one of {', '.join(KINDS)}")
    with_choices = collections.Counter(bool(row.get("choices")) for row in tables.load_rows(path))
    if len(with_choices) > 1:
        raise BadInput(
            f"{path}: {with_choices[True]} rows have choices, {with_choices[False]} have none; split the file"
        )
    name = pathlib.Path(path).stem
    prompt = lettered if with_choices[True] else question_only
    kind = kind or ("letter" if with_choices[True] else "math")
    return Benchmark(name, kind, None, (path, None, "train"), pathlib.Path(path).name, _read_local, prompt, home=path)


def _read_local(row: Mapping[str, Any]) -> Question:
    text, answer = _asked(row), first_field(row, "answer", "expected_answer")
    choices = tuple(map(str, row["choices"])) if row.get("choices") else None
    if not text.strip() or not str(answer).strip():
        raise BadInput(f"question {text[:60]!r} has the answer {answer!r}; fill both in or drop the row")
    if choices is not None and len(choices) > len(LETTERS):
        raise BadInput(f"question {text[:60]!r} has {len(choices)} choices; give at most {len(LETTERS)}")
    if choices is not None:
        answer = _answer_letter(answer, choices, text)
    return Question(row_id(row, text), text, str(answer), choices, source=str(row.get("source", "")))


def _asked(row: Mapping[str, Any]) -> str:
    """The question of a row. Raises BadInput for a chat that is more than one turn of the user."""
    value = first_field(row, "question", "problem", *QUESTIONS)
    if not isinstance(value, (list, tuple)):
        return str(value)
    turns = read_turns(value, "messages")
    if [turn.role for turn in turns] != ["user"]:
        roles = ", ".join(turn.role for turn in turns)
        raise BadInput(
            f"question {turns[0].content[:60]!r} is a chat of turns by {roles}; a benchmark asks one turn of the user: "
            "give a system turn as system=..., and rows with more turns to generate"
        )
    return turns[0].content


def _answer_letter(answer: Any, choices: tuple[str, ...], text: str) -> str:
    if isinstance(answer, int) and 0 <= answer < len(choices):
        return LETTERS[answer]
    if str(answer) in choices:
        return LETTERS[choices.index(str(answer))]
    if str(answer) in LETTERS[: len(choices)]:
        return str(answer)
    raise BadInput(
        f"question {text[:60]!r}: the answer {answer!r} is no letter, text or index of its {len(choices)} choices"
    )
