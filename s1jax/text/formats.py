"""Formats of training rows: which columns tell them, and how each becomes turns. Pure; no JAX.

`docs/formats.md` has the tables that this module makes of `FORMATS` and `QUESTIONS`.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from s1jax.config import BadInput
from s1jax.text.turns import ChatTurn, assistant_turn, read_turns

Columns = Mapping[str, Any]
# Where known data sets keep (thinking, answer), by teacher: ours, s1K, s1K-1.1.
TRACES: dict[str, tuple[tuple[str, str], ...]] = {
    "": (
        ("thinking", "answer"),
        ("thinking_trajectories", "attempt"),
        ("deepseek_thinking_trajectory", "deepseek_attempt"),
    ),
    "deepseek": (("deepseek_thinking_trajectory", "deepseek_attempt"),),
    "gemini": (("gemini_thinking_trajectory", "gemini_attempt"), ("thinking_trajectories", "attempt")),
}
DOCUMENT = "docs/formats.md"


@dataclasses.dataclass(frozen=True)
class Format:
    """One way in which people keep training rows.

    Attributes:
      columns: those that a row of it must have, each with the names it may have.
      optional: those that it may have beside them.
      about: what becomes of them.
      example: a row of it.
      read: row, where, teacher -> its turns; None where the row is text that is already rendered.
    """

    columns: tuple[tuple[str, ...], ...]
    optional: tuple[tuple[str, ...], ...]
    about: str
    example: Columns
    read: Callable[[Columns, str, str], tuple[ChatTurn, ...]] | None

    def lacks(self, row: Columns) -> list[str]:
        """The columns that a row lacks, or has only as null."""
        return [" or ".join(names) for names in self.columns if _first(row, names) is None]


def _first(row: Columns, names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def read_trace(row: Columns, where: str, teacher: str = "") -> tuple[ChatTurn, ...]:
    """A question, a trace and an answer, under the names that `TRACES` has for this teacher.

    Raises:
      BadInput: an unknown teacher, or a column that is missing, no text or empty.
    """
    if teacher not in TRACES:
        raise BadInput(f"teacher={teacher!r} is not known; use one of {', '.join(map(repr, TRACES))}")
    name = f"{where} (id {row['id']})" if row.get("id") is not None else where
    pairs = TRACES[teacher]
    thinking, answer = next((pair for pair in pairs if pair[0] in row), pairs[0])
    texts = {}
    for column in ("question", thinking, answer):
        value: Any = row.get(column)
        is_list = isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
        if isinstance(value, str) or (is_list and column == thinking):
            texts[column] = value if isinstance(value, str) else "\n".join(value)
        else:
            raise BadInput(
                f"{name}: column {column!r} is {type(value).__name__}, not text (columns: {', '.join(sorted(row))}); "
                "fill it, drop the row or name another teacher"
            )
        if not texts[column].strip():
            raise BadInput(f"{name}: column {column!r} is empty; fill it or drop the row")
    return ChatTurn("user", texts["question"]), ChatTurn("assistant", texts[answer], texts[thinking])


def _read_messages(row: Columns, where: str, _: str) -> tuple[ChatTurn, ...]:
    return read_turns(row["messages"], f"{where}: messages")


def _read_conversations(row: Columns, where: str, _: str) -> tuple[ChatTurn, ...]:
    name = next(name for name in FORMATS["sharegpt"].columns[0] if row.get(name) is not None)
    return read_turns(row[name], f"{where}: {name}")


def _read_completion(row: Columns, where: str, _: str) -> tuple[ChatTurn, ...]:
    """Texts, or lists of messages as in TRL."""
    turns: list[ChatTurn] = []
    for names, role in zip(FORMATS["prompt_completion"].columns, ("user", "assistant"), strict=True):
        name = next(name for name in names if row.get(name) is not None)
        value = row[name]
        if isinstance(value, str):
            turns += read_turns([{"role": role, "content": value}], f"{where}: {name}")
        else:
            turns += read_turns([value] if isinstance(value, Mapping) else value, f"{where}: {name}")
    return tuple(turns)


def _read_alpaca(row: Columns, where: str, _: str) -> tuple[ChatTurn, ...]:
    """The question is the instruction, then, after an empty line, the input; `history` holds turns before it."""
    outputs = FORMATS["alpaca"].columns[1]
    inputs = FORMATS["alpaca"].optional[0]
    texts = {"instruction": row["instruction"], "input": _first(row, inputs), "output": _first(row, outputs)}
    for name, value in texts.items():
        if not isinstance(value, str) and (name != "input" or value is not None):
            raise BadInput(f"{where}: column {name!r} is {type(value).__name__}, not text; fill it or drop the row")
    if not texts["instruction"].strip():
        raise BadInput(f"{where}: column 'instruction' is empty; fill it or drop the row")
    parts = [texts["instruction"], texts["input"]] if (texts["input"] or "").strip() else [texts["instruction"]]
    pairs = row.get("history") or []
    if not isinstance(pairs, (list, tuple)) or not all(
        isinstance(each, (list, tuple)) and len(each) == 2 for each in pairs
    ):
        raise BadInput(f"{where}: column 'history' is {pairs!r}; give a list of [question, answer]")
    before = [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    asked = {"role": "user", "content": "\n\n".join(parts)}
    answer = assistant_turn(texts["output"], "", f"{where}: column 'output'")
    return (*read_turns([*before, asked], where), answer)


FORMATS: dict[str, Format] = {
    "trace": Format(
        (
            ("question",),
            ("thinking", "thinking_trajectories", "deepseek_thinking_trajectory"),
            ("answer", "attempt", "deepseek_attempt"),
        ),
        (("system",),),
        "A question, a trace (a text or a list of texts) and an answer; s1K and s1K-1.1 as they are "
        "(`data.teacher=gemini` takes the columns `gemini_...`).",
        {"question": "1+1?", "thinking": "One and one.", "answer": "2"},
        read_trace,
    ),
    "messages": Format(
        (("messages",),),
        (("system",),),
        "A chat: `role` and `content`. An assistant's thinking stands in its content between `<think>` and `</think>` "
        "(with or without newlines), or beside it as `reasoning_content`, `reasoning` or `thinking`.",
        {
            "messages": [
                {"role": "user", "content": "1+1?"},
                {"role": "assistant", "content": "<think>\nOne and one.\n</think>\n\n2"},
            ]
        },
        _read_messages,
    ),
    "sharegpt": Format(
        (("conversations", "conversation"),),
        (("system",),),
        "A chat: `from` (`human`, `gpt`, `system`) and `value`; thinking as in `messages`.",
        {"conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]},
        _read_conversations,
    ),
    "prompt_completion": Format(
        (("prompt",), ("completion", "response")),
        (("system",),),
        "Two texts, or two lists of messages; thinking as in `messages`.",
        {"prompt": "1+1?", "completion": "<think>One and one.</think>2"},
        _read_completion,
    ),
    "alpaca": Format(
        (("instruction",), ("output", "response")),
        (("input", "context"), ("history",), ("system",)),
        "The user's turn is the instruction and, after an empty line, the input; `history` is a list of "
        "`[question, answer]`; thinking in the output as in `messages`.",
        {"instruction": "Add.", "input": "1+1", "output": "2"},
        _read_alpaca,
    ),
    "text": Format(
        (("text",),),
        (),
        "A chat that is rendered already, in the tokenizer's own template; the loss is on what assistants say.",
        {
            "text": "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n<|im_start|>think\nOne and one.\n"
            "<|im_start|>answer\nAnswer: 2<|im_end|>\n"
        },
        None,
    ),
}
# What a prompt of `generate` and a question of a local benchmark may be.
QUESTIONS: dict[str, tuple[str, Columns]] = {
    "question": ("A text: one turn of the user.", {"question": "1+1?"}),
    "prompt": ("The same, or a list of messages.", {"prompt": "1+1?"}),
    "messages": (
        "A chat. `generate` goes on with the next turn of the assistant, or with a last one that has begun; `eval` "
        "takes one turn of the user.",
        {"messages": [{"role": "user", "content": "1+1?"}]},
    ),
}


def format_of(row: Columns, where: str, wanted: str | None = None, teacher: str = "") -> str:
    """The key of `FORMATS` that a row is read as: the first whose columns it has, or `wanted`.

    A column that is null is not there. A question with a trace is a `trace`, whatever the name of its answer.

    Raises:
      BadInput: the row has the columns of none of them (or not of `wanted`); both sides are named.
    """
    if not isinstance(row, Mapping):
        raise BadInput(f"{where} is a {type(row).__name__}, not an object with columns")
    asked = FORMATS if wanted is None else {wanted: FORMATS[wanted]}
    traces = [
        pair[0] for pairs in ([*TRACES.values()] if teacher not in TRACES else [TRACES[teacher]]) for pair in pairs
    ]
    for name, each in asked.items():
        has_trace = row.get("question") is not None and _first(row, traces) is not None
        if has_trace if name == "trace" else not each.lacks(row):
            return name
    found = ", ".join(f"{name} ({_kind(value)})" for name, value in row.items()) or "none"
    near = [
        f"{name} lacks {' and '.join(lacking)}"
        for name, each in asked.items()
        if 0 < len(lacking := each.lacks(row)) < len(each.columns)
    ]
    accepted = "; ".join(f"{name}: {_columns(each)}" for name, each in asked.items())
    raise BadInput(
        f"{where} has the columns {found}; a training row has those of one format ({accepted})"
        f"{': ' + ', '.join(near) if near else ''}; rename its columns, {DOCUMENT} has examples"
    )


def read_row(row: Columns, where: str, name: str, teacher: str = "") -> tuple[ChatTurn, ...]:
    """The turns of a row of a format that is not `text`; a column `system` puts a turn before them.

    Raises:
      BadInput: a column that is not what its format says, or tools, which are not read.
    """
    read = FORMATS[name].read
    assert read is not None, "text is rendered already"
    turns = read(row, where, teacher)
    for tools in ("tools", "functions"):
        if name != "trace" and row.get(tools) and row[tools] != "[]":
            raise BadInput(f"{where} has {tools}; what they say would be lost: drop the row or the column")
    system = row.get("system")
    if not isinstance(system, str | None):
        raise BadInput(f"{where}: column 'system' is {type(system).__name__}, not text; fill it or drop it")
    if system and system.strip():
        if turns[0].role == "system" and turns[0].content != system:
            raise BadInput(f"{where} has a column 'system' and a system turn of its own; leave one of them")
        turns = turns if turns[0].role == "system" else (ChatTurn("system", system), *turns)
    return turns


def _kind(value: Any) -> str:
    words = {str: "text", bool: "truth value", int: "number", float: "number", type(None): "null"}
    return words.get(type(value)) or ("object" if isinstance(value, Mapping) else "list")


def _columns(each: Format) -> str:
    return " + ".join(" or ".join(names) for names in each.columns)


def table() -> str:
    """The formats of training rows as a table in Markdown."""
    lines = ["| format | columns | optional | what it is | a row |", "|---|---|---|---|---|"]
    for name, each in FORMATS.items():
        columns, optional = (
            ", ".join(" or ".join(f"`{column}`" for column in names) for names in sets)
            for sets in (each.columns, each.optional)
        )
        lines.append(f"| `{name}` | {columns} | {optional} | {each.about} | {_code(each.example)} |")
    return "\n".join(lines) + "\n"


def question_table() -> str:
    """What a prompt may be, as a table in Markdown."""
    lines = ["| column | what it is | a row |", "|---|---|---|"]
    lines += [f"| `{name}` | {about} | {_code(example)} |" for name, (about, example) in QUESTIONS.items()]
    return "\n".join(lines) + "\n"


def _code(row: Columns) -> str:
    return "`" + json.dumps(row, ensure_ascii=False).replace("|", "\\|") + "`"
