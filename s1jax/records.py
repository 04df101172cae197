"""Plain types that cross the borders between rooms, and the JSONL files that hold them. No JAX.

A row of `completions.jsonl` or `samples.jsonl` is a `Completion`, or a `Sample` (a completion and its grade).
"""

import codecs
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

from s1jax.config import BadInput, from_dict
from s1jax.runs.places import fetched, place, room_for, writing
from s1jax.runs.places import write_json as write_json


@dataclasses.dataclass(frozen=True)
class Question:
    """One question of a benchmark or a training pool.

    Attributes:
      id: unique in its file; by default `question_id(text)`.
      text: what is asked, without any instruction around it.
      answer: the reference answer, or None.
      choices: option texts in the order shown, or None.
      solution: the reference solution, or None.
      source: the data set it comes from.
      domain: subject, or None.
    """

    id: str
    text: str
    answer: str | None = None
    choices: tuple[str, ...] | None = None
    solution: str | None = None
    source: str = ""
    domain: str | None = None


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One row to complete.

    Attributes:
      id: unique among the prompts of a run.
      messages: chat messages (`{"role": ..., "content": ...}`); the last may be an assistant prefix.
      answer, choices: carried through to grading.
      control, sampling: per-row overrides of the run's control and sampling fields.
      seed: overrides the run's seed for this row.
    """

    id: str
    messages: tuple[dict[str, str], ...]
    answer: str | None = None
    choices: tuple[str, ...] | None = None
    control: dict[str, Any] = dataclasses.field(default_factory=dict)
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)
    seed: int | None = None


@dataclasses.dataclass(frozen=True)
class Completion:
    """What was generated for one prompt and sample index; see the file contract.

    Thinking is `token_ids[:thinking_tokens]`; the drawn answer begins at `answer_offset`; `forced[i]` says that
    `token_ids[i]` was put there by the control and not drawn; a final stop token is kept in `token_ids` and not counted
    in `answer_tokens`; `logprobs[i]` is the log-softmax of the raw fp32 logits at the token that stands there.
    `question` is the last turn of the user; of a private benchmark it is empty.

    `extra` is what the control adds (`budget`: `n_ignored`, `reopened`, `loop_at`); in a file its keys stand at the top
    level, and they can be read like fields. A `finish_reason` of `cancelled` or `error` exists in memory alone; `error`
    then says what happened.
    """

    id: str
    sample: int
    seed: int
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    forced: tuple[bool, ...]
    thinking_tokens: int
    answer_offset: int
    answer_tokens: int
    steps: int
    thinking_finish_reason: str | None
    finish_reason: str
    text: str
    logprobs: tuple[float, ...] | None = None
    format: str = "s1jax.completion/1"
    question: str = ""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    error: str | None = None

    def __getattr__(self, name: str) -> Any:
        extra = self.__dict__.get("extra", {})
        if name in extra:
            return extra[name]
        raise AttributeError(f"{type(self).__name__} has no {name!r}; its control adds {sorted(extra)}")

    @property
    def is_finished(self) -> bool:
        """It ended by itself; others are never written."""
        return self.finish_reason not in UNFINISHED


UNFINISHED = ("cancelled", "error")
TAIL_BYTES = 2**20
IN_MEMORY = ("extra", "error")


@dataclasses.dataclass(frozen=True)
class Sample(Completion):
    """A graded completion.

    `extracted` is None when the answer segment holds no answer (`no_answer`); `rule` says how it was found
    (`s1jax.grading.extract`); `undecided`: whether it equals the gold could not be settled, and it counts as wrong.
    """

    extracted: str | None = None
    gold: str | None = None
    correct: bool = False
    no_answer: bool = False
    rule: str | None = None
    undecided: bool = False
    format: str = "s1jax.sample/1"


def to_row(completion: Completion) -> dict[str, Any]:
    """The row of a file. Raises ValueError for a completion that did not finish: it must be made again."""
    if not completion.is_finished:
        raise ValueError(f"{completion.id!r} sample {completion.sample} is {completion.finish_reason}, not finished")
    row = dataclasses.asdict(completion)
    first = {name: row.pop(name) for name in ("id", "question")}
    return {**first, **{name: value for name, value in row.items() if name not in IN_MEMORY}, **completion.extra}


def question_id(text: str) -> str:
    """First 16 hex digits of the SHA-256 of the question text (simplescaling/s1@77272c6 data/utils/io_utils.py:109)."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def read_jsonl(path: str | os.PathLike, *, allow_empty: bool = False, skip_torn: bool = False) -> list[dict[str, Any]]:
    """All objects of a JSONL file, in order; blank lines and a byte order mark are passed over.

    Args:
      skip_torn: pass over a last line without its newline, which a crash cut off.

    Raises:
      BadInput: the file is missing or empty, or a line is not a JSON object (the line number is named).
    """
    path = fetched(path)
    if not path.is_file():
        raise BadInput(f"file {path} does not exist; give the path of a JSONL file")
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line.strip() and (line.endswith(b"\n") or not skip_torn):
                rows.append(_object(line, f"{path}:{number}"))
    if not rows and not allow_empty:
        raise BadInput(f"file {path} is empty; it must hold at least one JSON object a line")
    return rows


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        text = line.decode("utf-8")
        row = json.loads(text)
        if "\\ud" in text.lower():  # half of a surrogate pair is no text: it could not be hashed or written again
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise BadInput(f"{where} is not JSON ({error.msg} at column {error.colno}); mend or remove that line") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, a number of thousands of digits, endless brackets
        raise BadInput(f"{where} cannot be read ({error}); mend or remove that line") from None
    if not isinstance(row, dict):
        raise BadInput(f"{where} is a JSON {type(row).__name__}, not an object; write one object a line")
    return row


class JsonlWriter:
    """Appends one JSON object a line; each line is on disk when `write` returns.

    A line cut off by a crash (no newline at the end) is removed when the file is opened again: what was finished stays,
    what was not is written anew.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = pathlib.Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, row: Any) -> None:
        """Append a dict or a dataclass and flush it to disk."""
        with room_for(self.path):
            self._file.write(json.dumps(_plain(row), ensure_ascii=False) + "\n")
            _sync(self._file)

    def close(self) -> None:
        """Close the file; writing afterwards raises ValueError."""
        self._file.close()

    def __enter__(self) -> "JsonlWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _plain(row: Any) -> Any:
    if isinstance(row, Completion):
        return to_row(row)
    return dataclasses.asdict(row) if dataclasses.is_dataclass(row) and not isinstance(row, type) else row


def _drop_torn_line(path: pathlib.Path) -> None:
    with contextlib.suppress(FileNotFoundError), path.open("rb+") as file:
        length = end = file.seek(0, os.SEEK_END)
        whole = 0
        while end and not whole:  # from the end: a file of long traces may be larger than memory
            end, before = max(end - TAIL_BYTES, 0), end
            file.seek(end)
            found = file.read(before - end).rfind(b"\n")
            whole = 0 if found < 0 else end + found + 1
        if whole < length:
            file.truncate(whole)


def write_jsonl(path: str | os.PathLike, rows: Iterable[Any]) -> None:
    """Write a whole JSONL file so that a reader sees all of it or none: to a neighbour, then renamed."""
    path = place(path)
    with writing(path) as file:
        for row in rows:
            file.write(json.dumps(_plain(row), ensure_ascii=False) + "\n")


def _sync(file: IO[str]) -> None:
    """Until what was written is on disk: a name given before that may stand for nothing after a power cut."""
    file.flush()
    os.fsync(file.fileno())


def unique(rows: Iterable[Any], where: str) -> Iterator[Any]:
    """Pass rows with an `id` through; raises BadInput at the first id seen twice, naming both places."""
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        if row.id in seen:
            raise BadInput(f"{where}: id {row.id!r} stands in rows {seen[row.id]} and {number}; ids must be unique")
        seen[row.id] = number
        yield row


def to_completion(row: Mapping[str, Any], cls: type[Completion] = Completion, where: str = "") -> Any:
    """A `Completion` (or `Sample`) from a row of its file.

    Raises:
      BadInput: a missing key, a key that is neither a field nor a count of a control, or a row of another format.
    """
    if not isinstance(row, Mapping):
        raise BadInput(f"{where}is a JSON {type(row).__name__}, not a row; remove that line")
    written = row.get("format", cls.format)
    if written != cls.format:
        raise BadInput(f"{where}format is {written!r}, this version reads {cls.format!r}; use a file of that format")
    known = {field.name for field in dataclasses.fields(cls)} - {*IN_MEMORY}
    common = {name: value for name, value in row.items() if name in known}
    extra = {name: value for name, value in row.items() if name not in known}
    for name, value in extra.items():
        if name in IN_MEMORY or not isinstance(value, bool | int | float | str | None):
            raise BadInput(f"{where}{name} is {value!r}, which is none of a control's counts; remove that line")
    return from_dict(cls, {**common, "extra": extra}, where)
