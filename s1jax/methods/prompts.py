"""Prompts from a JSONL file: questions or chats, each with its own overrides of control and sampling."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from s1jax import control, records
from s1jax.config import BadInput, choice, from_dict, to_dict
from s1jax.control.budget.config import BudgetConfig
from s1jax.engine.sampling import SamplingConfig
from s1jax.records import Prompt
from s1jax.text.chat import system_turn

T = TypeVar("T")
SAMPLING = {field.name for field in dataclasses.fields(SamplingConfig)}
OWN = {"id", "question", "messages", "answer", "choices", "system", "seed", "control", "sampling"}
# Columns of data sets that say nothing about how a row is completed.
PASSED_OVER = {"solution", "source", "domain", "gold", "correct", "subject", "level", "meta"}
KIND = {Mapping: "an object", str: "a text", int: "a whole number", list: "a list"}


def read_prompts(path: str, system: str | None = None) -> list[Prompt]:
    """The prompts of a JSONL file, in order; see `prompt_of` for a row.

    Raises:
      BadInput: no such file, a row that is none, or an id twice.
    """
    rows = records.read_jsonl(path)
    prompts = [prompt_of(row, f"{path} row {number}", system) for number, row in enumerate(rows, 1)]
    return list(records.unique(prompts, path))


def prompt_of(row: Mapping[str, Any], where: str, system: str | None = None) -> Prompt:
    """One prompt.

    Args:
      row: `question`, or `messages` (the last may be an assistant's, which is then continued); optional `id`, `system`,
        `answer`, `choices`, `seed`; and any field of `control` or `sampling`, by its name or under these two. A null
        under any other name than those of `control` and `sampling` is as if it were not there.
      where: names the row in errors.
      system: the run's system turn, for rows without one.

    Raises:
      BadInput: neither or both of question and messages, a field of another name, or messages that are none.
    """
    of_control = {field.name for cls in control.configs().values() for field in dataclasses.fields(cls)}
    known = OWN | of_control | SAMPLING | PASSED_OVER
    row = {name: value for name, value in row.items() if value is not None or name not in OWN}
    for name in row:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known - PASSED_OVER), n=1, cutoff=0.0)[0]
            raise BadInput(
                f"{where} has the field {name!r}; the nearest known one is {near!r}, other data goes under 'meta'"
            )
    if ("question" in row) == ("messages" in row):
        raise BadInput(f"{where} has {'both' if 'question' in row else 'neither'} of question and messages; give one")
    for name, kind in (("control", Mapping), ("sampling", Mapping), ("system", str), ("seed", int), ("choices", list)):
        if name in row and (not isinstance(row[name], kind) or isinstance(row[name], bool)):
            raise BadInput(f"{where}: {name} is {row[name]!r} ({type(row[name]).__name__}); it must be {KIND[kind]}")
    system = row.get("system", system)
    if "question" in row:
        if not isinstance(row["question"], str) or not row["question"].strip():
            raise BadInput(f"{where}: question is {row['question']!r}; give a text")
        messages = (*system_turn(system), {"role": "user", "content": row["question"]})
        id = records.question_id(row["question"])
    else:
        messages = _messages(row["messages"], where)
        if system is not None and messages[0]["role"] != "system":
            messages = (*system_turn(system), *messages)
        id = records.question_id("\n".join(message["content"] or "" for message in messages))
    return Prompt(
        id=str(row.get("id", id)),
        messages=messages,
        answer=None if row.get("answer") is None else str(row["answer"]),
        choices=tuple(map(str, row["choices"])) if row.get("choices") else None,
        control={**row.get("control", {}), **{name: row[name] for name in row if name in of_control}},
        sampling={**row.get("sampling", {}), **{name: row[name] for name in row if name in SAMPLING}},
        seed=row.get("seed"),
    )


def _messages(value: Any, where: str) -> tuple[dict[str, str], ...]:
    rows = value if isinstance(value, list) else []
    if not rows or not all(isinstance(m, dict) and {"role", "content"} <= set(m) for m in rows):
        raise BadInput(f"{where}: messages must be a list of objects with role and content, at least one")
    for message in rows:
        has_content = isinstance(message["content"], str) or (message["content"] is None and "tool_calls" in message)
        if not isinstance(message["role"], str) or not has_content:
            raise BadInput(
                f"{where}: a message has role {message['role']!r} and content {message['content']!r}; give texts"
            )
    return tuple(rows)


def override(base: T, changes: Mapping[str, Any], where: str) -> T:
    """A config with some fields set anew. Raises BadInput for a value of the wrong type."""
    if not changes:
        return base
    return from_dict(type(base), {**to_dict(base), **changes}, f"{where} " if where else "")


def override_control(base: Any, changes: Mapping[str, Any], where: str) -> Any:
    """A control with some fields set anew; of another kind it keeps the fields that both have.

    Raises:
      BadInput: as `override`, or an unknown kind.
    """
    kind = changes.get("kind", base.kind)
    before = to_dict(base)
    if kind != base.kind and isinstance(kind, str) and kind in control.CONTROLS:
        shared = {field.name for field in dataclasses.fields(control.CONTROLS[kind].config)} - {"kind"}
        before = {name: value for name, value in before.items() if name in shared}
    return from_dict(_Control, {"control": {**before, **changes, "kind": kind}}, f"{where} " if where else "").control


@dataclasses.dataclass(frozen=True)
class _Control:
    control: Any = choice(BudgetConfig(), control.configs)
