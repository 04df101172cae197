"""Chats as people have them -> turns: names of roles, contents in parts, thinking inside or beside an answer. Pure."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from s1jax.config import BadInput
from s1jax.text.tokens import PRESETS

ROLES: dict[Literal["system", "user", "assistant"], tuple[str, ...]] = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "model", "bot", "chatgpt", "ai"),
}
TOOL_ROLES = ("tool", "tools", "function", "function_call", "tool_call", "tool_response", "observation", "ipython")
CALLS = ("tool_calls", "function_call", "tool_call_id")
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")
THINKING_KEYS = ("reasoning_content", "reasoning", "thinking")
THINKING_TAGS = (
    *dict.fromkeys((markers.thinking_start.strip(), markers.answer_start.strip()) for markers in PRESETS.values()),
    ("<thinking>", "</thinking>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
SOLUTION_TAGS = ("<|begin_of_solution|>", "<|end_of_solution|>")
TEXT_PARTS, THINKING_PARTS = ("text", "input_text", "output_text"), ("thinking", "reasoning")


@dataclasses.dataclass(frozen=True)
class ChatTurn:
    """One turn of a chat.

    Attributes:
      content: of the user or the system as it was written; of the assistant the answer.
      thinking: of an assistant's turn; "" for a think block that is there and empty, None where there is none.
    """

    role: Literal["system", "user", "assistant"]
    content: str
    thinking: str | None = None


def read_turns(value: Any, where: str) -> tuple[ChatTurn, ...]:
    """The turns of a list of messages, all of them, in order.

    Args:
      value: objects with a role (`role` or `from`) and a content (`content` or `value`: a text, or parts of text); an
        assistant's thinking in a field of its own (`THINKING_KEYS`) or in the content (`THINKING_TAGS`).
      where: names the row in errors.

    Raises:
      BadInput: it is no such list, a role that is not known, a tool's turn or call, an image, an empty content, or
        thinking that does not end.
    """
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(each, Mapping) for each in value):
        raise BadInput(f"{where} must be a list of objects with role and content, at least one")
    return tuple(_turn(message, f"{where} turn {number}") for number, message in enumerate(value, 1))


def _turn(message: Mapping[str, Any], where: str) -> ChatTurn:
    role = read_role(message, where)
    calls = [name for name in CALLS if message.get(name)]
    if calls:
        raise BadInput(f"{where} ({role}) has {calls[0]}; calls of tools are not read: drop the row")
    content, thought = message_text(message, where)
    if role != "assistant":
        if thought:
            raise BadInput(f"{where} ({role}) has thinking; only an assistant thinks: move it")
        if role == "user" and not content.strip():
            raise BadInput(f"{where} ({role}) is empty; fill it or drop the row")
        return ChatTurn(role, content)
    return assistant_turn(content, thought, where)


def read_role(message: Mapping[str, Any], where: str) -> Literal["system", "user", "assistant"]:
    """The role of a message. Raises BadInput for one that has none, a tool's, or another that is not known."""
    given = next((message[key] for key in ROLE_KEYS if message.get(key) is not None), None)
    name = given.strip().lower() if isinstance(given, str) else None
    if name in TOOL_ROLES:
        raise BadInput(f"{where} is a tool's (role {given!r}); turns of tools are not read: drop the row")
    for role, names in ROLES.items():
        if name in names:
            return role
    known = ", ".join(name for names in ROLES.values() for name in names)
    raise BadInput(f"{where} has role {given!r} (its fields: {', '.join(map(str, message))}); use one of {known}")


def message_text(message: Mapping[str, Any], where: str) -> tuple[str, str]:
    """Content and thinking of a message as texts, "" for what it lacks; parts of one kind are joined as they are.

    Raises:
      BadInput: a content that is no text, or a part of another kind.
    """
    content = next((message[key] for key in CONTENT_KEYS if message.get(key) is not None), None)
    texts, thoughts, fields = [], [], []
    for key in THINKING_KEYS:
        if not isinstance(message.get(key), str | None):
            raise BadInput(f"{where}: {key} is {type(message[key]).__name__}, not text; give a text")
        fields.append(message.get(key) or "")
    if isinstance(content, str):
        texts.append(content)
    elif isinstance(content, (list, tuple)) and content and all(isinstance(part, Mapping) for part in content):
        for part in content:
            _add_part(part, texts, thoughts, where)
    elif content is not None or not any(fields):  # an answer that is missing is named by who needs it
        keys = " or ".join(CONTENT_KEYS)
        raise BadInput(f"{where}: content is {content!r}; give texts, or a list of parts of text, as {keys}")
    traces = {trace.strip(): trace for trace in (*fields, "".join(thoughts)) if trace.strip()}
    if len(traces) > 1:
        raise BadInput(f"{where} has thinking in several fields ({', '.join(THINKING_KEYS)}), not the same; leave one")
    return "".join(texts), next(iter(traces.values()), "")


def _add_part(part: Mapping[str, Any], texts: list[str], thoughts: list[str], where: str) -> None:
    kind = part.get("type", "text")
    own = [part[key] for key in (kind, "text") if isinstance(kind, str) and isinstance(part.get(key), str)]
    if kind in TEXT_PARTS and own:
        texts.append(own[0])
    elif kind in THINKING_PARTS and own:
        thoughts.append(own[0])
    else:
        raise BadInput(
            f"{where} has a part of type {kind!r} (its fields: {', '.join(map(str, part))}); only parts of type "
            f"{', '.join((*TEXT_PARTS, *THINKING_PARTS))} with their text are read: drop the row"
        )


def assistant_turn(content: str, thinking: str, where: str) -> ChatTurn:
    """An assistant's turn from its content, and its thinking where that has a field of its own (else "").

    Raises:
      BadInput: no answer, as `split_thinking`, or two different traces of thinking.
    """
    inside, answer = split_thinking(content, where)
    if inside is not None and inside.strip() and thinking.strip() and inside.strip() != thinking.strip():
        raise BadInput(
            f"{where} has thinking in its content and in a field of its own, not the same; leave one of them"
        )
    if not answer.strip():
        raise BadInput(
            f"{where} (assistant) has no answer{' behind its thinking' if inside or thinking else ''}; fill it"
        )
    return ChatTurn("assistant", answer, thinking if thinking.strip() else inside)


def split_thinking(content: str, where: str) -> tuple[str | None, str]:
    """Thinking and answer of an assistant's content that opens with a think block; None and the content without one.

    The opening tag may be missing, as where a template has put it into the prompt. Neither part is stripped.

    Raises:
      BadInput: a block that does not end, or a second one.
    """
    for start, end in THINKING_TAGS:
        before, has_end, rest = content.partition(end)
        is_open = content.lstrip().startswith(start)
        if is_open and not has_end:
            raise BadInput(f"{where} opens {start} and never ends it with {end}; end the thinking or drop the row")
        if is_open or (has_end and start not in before):
            if end in rest:
                raise BadInput(f"{where} has a second {end}; a turn thinks once: split the turn or drop the row")
            return (before.lstrip().removeprefix(start) if is_open else before), _solution(rest)
    return None, _solution(content)


def _solution(answer: str) -> str:
    start, end = SOLUTION_TAGS
    inner = answer.strip()
    return inner[len(start) : -len(end)] if inner.startswith(start) and inner.endswith(end) else answer


def one_name(turns: Sequence[ChatTurn]) -> str:
    """The text whose hash names a row: what stands before its last answer."""
    last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=len(turns))
    return "\n".join(turn.content for turn in turns[:last])
