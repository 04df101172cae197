"""Chat templates: rendering them, and telling a template's own added tokens from those that a message spells out."""

import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from s1jax.config import BadInput

Message = Mapping[str, Any]
SpelledToken = tuple[int, str]  # message index, added token spelled out in it


def read_template(path: str | os.PathLike) -> str:
    """The Jinja chat template in a file. Raises BadInput when there is no such file."""
    file = pathlib.Path(path)
    if not file.is_file():
        raise BadInput(f"chat_template={path} does not exist; give the path of a file with a Jinja template")
    try:
        template = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BadInput(f"chat_template={path} is not UTF-8 text; give a file with a Jinja template") from None
    if not template.strip():
        raise BadInput(f"chat_template={path} is empty, so no message would reach the model; give another")
    return template


def render_template(template: str, messages: Sequence[Message], **names: Any) -> str:
    """The text that a Jinja chat template makes of `messages`; `names` are what else it may read.

    Raises:
      BadInput: the template is broken or refuses the messages.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    conversations = [[dict(message) for message in messages]]
    try:
        rendered, _ = render_jinja_template(conversations, chat_template=template, **names)
    except Exception as error:  # a template is a program of its own: whatever it raises is about it
        raise BadInput(f"the chat template refuses these messages: {error}; change the messages") from None
    return rendered[0]


def pattern_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of `texts`, the longest first; with no texts it finds nothing."""
    ordered = sorted((re.escape(text) for text in texts if text), key=len, reverse=True)
    return re.compile("|".join(ordered) or r"(?!)")


class Marks:
    """Texts hidden behind `mark i mark`, where the mark is a private-use character that `around` does not hold."""

    def __init__(self, around: str) -> None:
        self.mark = next(char for char in map(chr, range(0xE000, 0xF900)) if char not in around)
        self.hidden: list[str] = []

    def hide(self, value: Any, pattern: re.Pattern[str]) -> Any:
        """`value` (plain data) with every match of `pattern` in every string of it hidden."""
        if isinstance(value, str):
            return pattern.sub(self._put, value)
        if isinstance(value, Mapping):
            return {self.hide(key, pattern): self.hide(item, pattern) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.hide(item, pattern) for item in value]
        return value

    def _put(self, match: re.Match[str]) -> str:
        self.hidden.append(match[0])
        return f"{self.mark}{len(self.hidden) - 1}{self.mark}"

    def show(self, text: str) -> str:
        """`text` with everything hidden put back."""
        return re.sub(f"{self.mark}([0-9]+){self.mark}", lambda match: self.hidden[int(match[1])], text)


def mark_messages(
    render: Callable[[Sequence[Message]], str],
    messages: Sequence[Message],
    added: re.Pattern[str],
    may_be_read: Callable[[Message, str], bool],
) -> tuple[str, Marks]:
    """The rendered text in which every added token that a message spells out is hidden.

    A token is hidden before the template sees the message. Where putting it back does not give the text that the
    template makes of the message itself, the template has read the token; `may_be_read` says whether that is allowed,
    and it then stays the template's.

    Raises:
      BadInput: the template alters a token in any other way.
    """
    text = render(messages)

    def marked(places: Sequence[SpelledToken]) -> tuple[str, Marks]:
        marks = Marks(json.dumps(list(messages), ensure_ascii=False, default=str) + text)
        texts = [[t for j, t in places if j == i] for i in range(len(messages))]
        rows = [marks.hide(m, pattern_of(t)) if t else m for m, t in zip(messages, texts, strict=True)]
        return (render(rows) if places else text), marks

    def is_faithful(places: Sequence[SpelledToken]) -> bool:
        rendered, marks = marked(places)
        return marks.show(rendered) == text

    places = _spelled_out(messages, added)
    if not is_faithful(places):
        read = [place for place in places if not is_faithful([place])]
        places = [place for place in places if place not in read]
        refused = [(i, t) for i, t in read if not may_be_read(messages[i], t)]
        if refused or not is_faithful(places):
            named = ", ".join(f"{t!r} in message {i}" for i, t in refused or read or places)
            raise BadInput(f"the chat template alters {named}; remove that text from the message")
    return marked(places)


def _spelled_out(messages: Sequence[Message], added: re.Pattern[str]) -> list[SpelledToken]:
    places: dict[SpelledToken, None] = {}
    for i, message in enumerate(messages):
        marks = Marks("")
        marks.hide(message, added)
        places.update(((i, text), None) for text in marks.hidden)
    return list(places)


def system_turn(system: str | None) -> list[dict[str, str]]:
    """The system turn as a list of messages, empty without one."""
    return [] if system is None else [{"role": "system", "content": system}]
