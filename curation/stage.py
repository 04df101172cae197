"""What the stages of curation pass on: candidates, selections with a reason for every drop, and the stage itself."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from s1jax.records import Question

Teacher = Callable[[Question], "Trace | None"]
Solver = Callable[[Sequence[Question]], Sequence[Mapping[str, float]]]
SayLine = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Trace:
    """What a teacher wrote for one question."""

    thinking: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A question on its way to becoming a training row.

    Attributes:
      question: `question.answer` is the gold answer, `question.source` the name that s1 gives the data set.
      origin: the entry of `sources` that it was read from.
      kind: how its answer is graded (a key of `s1jax.grading.grade.KINDS`).
      thinking, answer: the teacher's, or None.
      correct: whether the teacher's answer is right, or None if nobody knows.
      thinking_length: length of the trace, in the unit of the run (tokens or words), or None.
      verdicts: by solver, the share of its attempts that were right.
    """

    question: Question
    origin: str = ""
    kind: str = "math"
    thinking: str | None = None
    answer: str | None = None
    correct: bool | None = None
    thinking_length: int | None = None
    verdicts: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def id(self) -> str:
        """The question's id."""
        return self.question.id


@dataclasses.dataclass(frozen=True)
class Dropped:
    """Why a candidate was dropped: `rule` for counting, `reason` for reading. Neither quotes a benchmark."""

    id: str
    source: str
    rule: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Selection:
    """Outcome of a stage: every candidate that went in is in exactly one of the two."""

    kept: tuple[Candidate, ...]
    dropped: tuple[Dropped, ...]


@dataclasses.dataclass(frozen=True)
class Tools:
    """What a stage may use beside its config.

    Attributes:
      seed: of the run.
      folder: where expensive answers (teacher, solver) are kept, so that an interrupted run goes on.
      teacher, solver: None where the run has none.
      progress: takes one line.
    """

    seed: int
    folder: pathlib.Path
    teacher: Teacher | None = None
    solver: Solver | None = None
    progress: SayLine = print


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step: `select(candidates, config, tools)`; it drops or completes candidates, and never adds one."""

    select: Callable[[Sequence[Candidate], Any, Tools], Selection]


def split(candidates: Sequence[Candidate], judge: Callable[[Candidate], tuple[str, str] | None]) -> Selection:
    """Keep the candidates for which `judge` gives None; it gives (rule, reason) for the others."""
    kept, dropped = [], []
    for candidate in candidates:
        verdict = judge(candidate)
        if verdict is None:
            kept.append(candidate)
        else:
            dropped.append(drop(candidate, *verdict))
    return Selection(tuple(kept), tuple(dropped))


def drop(candidate: Candidate, rule: str, reason: str) -> Dropped:
    """The record of a dropped candidate."""
    return Dropped(candidate.id, candidate.question.source, rule, reason)
