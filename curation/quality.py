"""Drop questions and traces that are broken in form: the string filters of s1, missing fields, malformed traces.

The patterns are those of simplescaling/s1@77272c6 data/filter.ipynb, cell 7; each of its quirks has a switch.
"""

import dataclasses
import re
from collections.abc import Sequence

from curation.stage import Candidate, Selection, Stage, Tools, split
from s1jax.config import BadInput
from s1jax.grading.grade import boxed
from s1jax.text.tokens import PRESETS

FIELDS = ("thinking", "answer", "gold", "domain", "solution", "correct", "verdicts")
_BOLD_NUMBER = re.compile(r"\*\*(?=.*\d)[^\s\]]*\*\*")
_PART = re.compile(r"\bp[1-9]\d{0,2}\.(?!\d)")
_PART_SUBSTRING = re.compile(r"p[1-9]\d{0,2}\.")


@dataclasses.dataclass(frozen=True)
class QualityConfig:
    """Which rows are whole and well-formed.

    Attributes:
      required: fields that must be there, keys of `FIELDS`; upstream wants all, so every unsolved source vanishes.
      strings: apply the string filters at all.
      aime_asy: keep an AIME question with `[asy]` whatever else it holds (upstream's notebook, not the paper's counts).
      part_substring: `p1.` ... `p999.` anywhere, `step1.` too (upstream), and not only as a word of its own.
      correct_only: drop rows whose answer is known to be wrong; upstream trains on 46 % wrong traces.
      preset: whose markers a trace must not spell out, a key of `PRESETS`.
    """

    required: tuple[str, ...] = ("thinking", "answer")
    strings: bool = True
    aime_asy: bool = False
    part_substring: bool = False
    correct_only: bool = False
    preset: str = "s1"


def select(candidates: Sequence[Candidate], config: QualityConfig, tools: Tools) -> Selection:
    """Raises BadInput for an unknown field or preset."""
    unknown = [field for field in config.required if field not in FIELDS]
    if unknown:
        raise BadInput(f"quality.required names {unknown[0]!r}; the fields are {', '.join(FIELDS)}")
    if config.preset not in PRESETS:
        raise BadInput(f"quality.preset={config.preset!r} is not known; the presets are {', '.join(PRESETS)}")
    return split(candidates, lambda candidate: _judge(candidate, config))


def _judge(candidate: Candidate, config: QualityConfig) -> tuple[str, str] | None:
    missing = [field for field in config.required if _field(candidate, field) in (None, "", {})]
    if missing:
        return "missing", f"no {', '.join(missing)}"
    return (
        (_bad_string(candidate, config) if config.strings else None)
        or _malformed(candidate, config)
        or (
            ("wrong", "the answer is known to be wrong") if config.correct_only and candidate.correct is False else None
        )
    )


def _field(candidate: Candidate, field: str) -> object:
    value = {
        "thinking": candidate.thinking,
        "answer": candidate.answer,
        "gold": candidate.question.answer,
        "domain": candidate.question.domain,
        "solution": candidate.question.solution,
        "correct": candidate.correct,
        "verdicts": candidate.verdicts,
    }[field]
    return value.strip() if isinstance(value, str) else value


def _bad_string(candidate: Candidate, config: QualityConfig) -> tuple[str, str] | None:
    text = candidate.question.text
    if config.aime_asy and "[asy]" in text and "AIME" in candidate.question.source:
        return None
    if "[asy]" in text:
        return "[asy]", "a drawing in Asymptote"
    if "![Image]" in text:
        return "![Image]", "an image that is not there"
    part = (_PART_SUBSTRING if config.part_substring else _PART).search(text)
    if part:
        return "p1.", f"several problems in one ({part[0]!r})"
    bold = _BOLD_NUMBER.search(text)
    return ("**1**", f"a bold number, of several problems in one ({bold[0][:20]!r})") if bold else None


def _malformed(candidate: Candidate, config: QualityConfig) -> tuple[str, str] | None:
    if candidate.thinking is None or candidate.answer is None:
        return None
    markers = PRESETS[config.preset]
    spelled = (markers.thinking_start.strip(), *markers.thinking_end)
    for name, text in (("trace", candidate.thinking), ("answer", candidate.answer)):
        if not text.strip():
            return "malformed", f"the {name} is empty"
        if "\ufffd" in text:
            return "malformed", f"the {name} holds U+FFFD: its bytes were cut or misread"
        marker = next((marker for marker in spelled if marker in text), None)
        if marker:
            return "malformed", f"the {name} spells out {marker!r}"
    if "\\boxed{" in candidate.answer and boxed(candidate.answer) is None:
        return "malformed", "the answer's box is empty or never closed"
    return None


STAGE = Stage(select)
