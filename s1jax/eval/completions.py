"""Completions of any engine, with the reference answers they are compared with. No JAX."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from s1jax.config import BadInput
from s1jax.grading.grade import KINDS
from s1jax.records import question_id, read_jsonl
from s1jax.text.tokens import PRESETS, Tokenizer


@dataclasses.dataclass(frozen=True)
class GivenCompletion:
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


def read_rows(
    path: str,
    *,
    kind: str,
    golds: Mapping[str, str] | None = None,
    tokenizer: Tokenizer | None = None,
    thinking_end: Sequence[str] | None = None,
) -> list[GivenCompletion]:
    """The rows of a file, checked.

    Args:
      path: of JSONL.
      kind: of rows that do not say theirs.
      golds: reference answers by id, which stand instead of the rows' own.
      tokenizer: for rows with tokens and no text.
      thinking_end: texts that end thinking; None: those of all presets.

    Raises:
      BadInput: a line is no object, or lacks an id, a text or a gold; an unknown kind; an (id, sample) twice.
    """
    rows: list[GivenCompletion] = []
    seen: dict[tuple[str, int], int] = {}
    for number, given in enumerate(read_jsonl(path), 1):
        where = f"{path} row {number}"
        id, sample = _key(given, where)
        gold, of_kind = _gold(given, id, where, golds), _kind(given, kind, where)
        text = _text(given, where, tokenizer)
        row = GivenCompletion(id, sample, text, segment_of(given, text, thinking_end), gold, of_kind, given)
        if (first := seen.setdefault((row.id, row.sample), number)) != number:
            raise BadInput(
                f"{where}: sample {row.sample} of id {row.id!r} stands in row {first} too; give samples of one id "
                "different numbers in the field 'sample', other completions different ids"
            )
        rows.append(row)
    return rows


def _key(given: Mapping[str, Any], where: str) -> tuple[str, int]:
    id = given.get("id", question_id(given["question"]) if isinstance(given.get("question"), str) else None)
    if not isinstance(id, (str, int)) or isinstance(id, bool):
        raise BadInput(f"{where} has the id {id!r}; give it an id, or the question it answers")
    sample = given.get("sample", 0)
    if not isinstance(sample, int) or isinstance(sample, bool) or sample < 0:
        raise BadInput(f"{where}: sample is {sample!r}; it must be a whole number from 0")
    return str(id), sample


def _kind(given: Mapping[str, Any], default: str, where: str) -> str:
    kind = given.get("kind") or default
    if kind not in KINDS:
        raise BadInput(f"{where}: kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    return kind


def _gold(given: Mapping[str, Any], id: str, where: str, golds: Mapping[str, str] | None) -> str:
    gold = given.get("gold") if golds is None else golds.get(id)
    if isinstance(gold, bool) or not isinstance(gold, (str, int, float)) or not str(gold).strip():
        hint = "give every row a gold, or benchmark=NAME"
        hint = hint if golds is None else "no question of the benchmark has this id; give the benchmark of these rows"
        raise BadInput(f"{where}: id {id!r} has no reference answer (gold is {gold!r}); {hint}")
    return str(gold)


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
