"""Prompts from a file: questions or chats, each with its own overrides of control and sampling."""

import dataclasses
import difflib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from s1jax import control, records, tables
from s1jax.config import BadInput, choice, from_dict, to_dict
from s1jax.control.budget.config import BudgetConfig
from s1jax.engine.sampling import SamplingConfig
from s1jax.records import Prompt
from s1jax.text.chat import system_turn
from s1jax.text.formats import QUESTIONS
from s1jax.text.turns import CONTENT_KEYS, ROLE_KEYS, ROLES, message_text

T = TypeVar("T")
SAMPLING = {field.name for field in dataclasses.fields(SamplingConfig)}
OWN = {"id", *QUESTIONS, "answer", "choices", "system", "seed", "control", "sampling"}
# Columns of data sets that say nothing about how a row is completed.
PASSED_OVER = {"solution", "source", "domain", "gold", "correct", "subject", "level", "meta"}
KIND = {Mapping: "an object", str: "a text", int: "a whole number", list: "a list"}


def read_prompts(path: str, system: str | None = None) -> list[Prompt]:
    """The prompts of a file (or of whatever `tables.load_rows` reads), in order; see `prompt_of` for a row.

    Equal prompts without ids are told apart by a number behind the hash that names them.

    Raises:
      BadInput: no such file, a row that is none, or an id twice.
    """
    is_file = pathlib.Path(path).suffix in tables.SUFFIXES and not pathlib.Path(path).exists()
    rows = records.read_jsonl(path) if is_file else tables.load_rows(path)
    prompts = [prompt_of(row, f"{path} row {number}", system) for number, row in enumerate(rows, 1)]
    has_id = [row.get("id") is not None for row in rows]
    return list(records.unique(_numbered(prompts, has_id), path))


def _numbered(prompts: Sequence[Prompt], has_id: Sequence[bool]) -> list[Prompt]:
    """The second of several alike gets `-2` behind its id, and so on; those that were given ids keep them."""
    taken = {prompt.id for prompt, given in zip(prompts, has_id, strict=True) if given}
    named = []
    for prompt, given in zip(prompts, has_id, strict=True):
        id, number = prompt.id, 1
        while not given and id in taken:
            number += 1
            id = f"{prompt.id}-{number}"
        taken.add(id)
        named.append(dataclasses.replace(prompt, id=id))
    return named


def prompt_of(row: Mapping[str, Any], where: str, system: str | None = None) -> Prompt:
    """One prompt.

    Args:
      row: `question` or `prompt` (a text, or a list as in `messages`), or `messages` (the last may be an assistant's,
        which is then continued); optional `id`, `system`, `answer`, `choices`, `seed`; and any field of `control` or
        `sampling`, by its name or under these two. A null under any other name than those of `control` and `sampling`
        is as if it were not there.
      where: names the row in errors.
      system: the run's system turn, for rows without one.

    Raises:
      BadInput: none or several of question, prompt and messages, a field of another name, or messages that are none.
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
    asked = [name for name in QUESTIONS if name in row]
    if not asked:
        raise BadInput(f"{where} has neither of question and messages, nor a prompt (it has {_names(row)}); give one")
    if len(asked) > 1:
        raise BadInput(f"{where} has both of {' and '.join(asked)}; give one")
    for name, kind in (("control", Mapping), ("sampling", Mapping), ("system", str), ("seed", int), ("choices", list)):
        if name in row and (not isinstance(row[name], kind) or isinstance(row[name], bool)):
            raise BadInput(f"{where}: {name} is {row[name]!r} ({type(row[name]).__name__}); it must be {KIND[kind]}")
    system = row.get("system", system)
    (value,) = (row[name] for name in asked)
    if asked == ["question"] or (asked == ["prompt"] and not isinstance(value, list)):
        if not isinstance(value, str) or not value.strip():
            raise BadInput(f"{where}: {asked[0]} is {value!r}; give a text")
        messages = (*system_turn(system), {"role": "user", "content": value})
        id = records.question_id(value)
    else:
        messages = _messages(value, f"{where}: {asked[0]}")
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


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "nothing"


def _messages(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    """Messages as templates read them: `role` and `content` (texts), and whatever else they have (`tool_calls`)."""
    rows = value if isinstance(value, list) else []
    names = (ROLE_KEYS, CONTENT_KEYS)
    if not rows or not all(isinstance(m, dict) and all(set(keys) & set(m) for keys in names) for m in rows):
        raise BadInput(f"{where} must be a list of objects with role and content, at least one")
    return tuple(_message(message, f"{where} turn {number}") for number, message in enumerate(rows, 1))


def _message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    role, content = (next((message[k] for k in keys if k in message), None) for keys in (ROLE_KEYS, CONTENT_KEYS))
    has_parts = isinstance(content, list) and all(isinstance(part, dict) for part in content)
    has_content = isinstance(content, str) or has_parts or (content is None and "tool_calls" in message)
    if not isinstance(role, str) or not has_content:
        raise BadInput(f"{where}: a message has role {role!r} and content {content!r}; give texts")
    role = next((name for name, alike in ROLES.items() if role.strip().lower() in alike), role)
    rest = {name: value for name, value in message.items() if name not in (*ROLE_KEYS, *CONTENT_KEYS)}
    if has_parts:
        content, thinking = message_text(message, where)
        rest |= {"reasoning_content": thinking} if thinking else {}
    return {"role": role, "content": content, **rest}


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
