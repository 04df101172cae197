"""Text to ids and back: the tokenizer, the chat template, and the markers that open and close thinking. No JAX.

Two ways of encoding are kept apart everywhere. *Markup* is text of ours or of the chat template: an added token that is
spelled out in it is that token. *Plain* text comes from a user, a model or a data set: there it is ordinary text.
"""

import dataclasses
import functools
import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers

from s1jax import hub
from s1jax.config import BadInput
from s1jax.runs.places import fetched, write_json
from s1jax.text.chat import Marks, mark_messages, pattern_of, render_template
from s1jax.text.token_backend import (
    EOS_FILES,
    FETCHED,
    TOKENIZER_FILES,
    bytes_converter,
    inside_text,
    read_backend,
    read_object,
    read_settings,
    token_text,
    without_added,
)


@dataclasses.dataclass(frozen=True)
class Markers:
    """Texts around thinking.

    Attributes:
      thinking_start: think header, put at the end of the prompt.
      thinking_end: texts that end thinking; any EOS ends it too.
      answer_start: put after a natural end. A delimiter that it begins with is replaced by it; any other stays.
      forced_end: the closing when the budget is spent, without the newline that may precede it.
    """

    thinking_start: str
    thinking_end: tuple[str, ...]
    answer_start: str
    forced_end: str


# s1: simplescaling/s1@77272c6 data/tokenization.py:18-34 and eval/lm-evaluation-harness (the delimiter is one id).
# qwen3: the sentence is that of the Qwen3 Technical Report (arXiv 2505.09388), section 4.3.
PRESETS: dict[str, Markers] = {
    "s1": Markers(
        thinking_start="<|im_start|>think",
        thinking_end=("<|im_start|>",),
        answer_start="<|im_start|>answer",
        forced_end="<|im_start|>answer\nFinal Answer:",
    ),
    "think_tags": Markers(
        thinking_start="<think>\n",
        thinking_end=("</think>",),
        answer_start="\n</think>\n\n",
        forced_end="</think>\n\n",
    ),
    "qwen3": Markers(
        thinking_start="<think>\n",
        thinking_end=("</think>",),
        answer_start="\n</think>\n\n",
        forced_end="Considering the limited time by the user, I have to give the solution based on the thinking "
        "directly now.\n</think>\n\n",
    ),
}


class Tokenizer:
    """A tokenizer and its chat template.

    Attributes:
      size: number of ids the tokenizer has (Qwen2.5: 151,665). A model may have more rows; those are never drawn.
      eos_ids: union of the EOS ids named by generation_config.json, config.json and the tokenizer.
      added: added (special) tokens, text -> id.
      chat_template: the Jinja template, or None for a base model.
      folder: where the files came from, or None when made in memory.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        settings: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
        eos_ids: Iterable[int] = (),
        folder: pathlib.Path | None = None,
    ) -> None:
        """Wrap a `tokenizers.Tokenizer`; `settings` is the content of tokenizer_config.json."""
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = False
        self._backend = backend
        self._settings = dict(settings or {})
        self._template_is_new = chat_template is not None
        self.chat_template = chat_template if chat_template is not None else _template(self._settings)
        self.folder = folder
        self.added = {token.content: id for id, token in sorted(backend.get_added_tokens_decoder().items())}
        self.size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        eos = token_text(self._settings["eos_token"]) if self._settings.get("eos_token") else None
        own = backend.token_to_id(eos) if eos else None
        self.eos_ids = frozenset(eos_ids) | (frozenset() if own is None else {own})
        self._plain = without_added(backend)
        self._plain_inner = inside_text(self._plain)
        self._added_text = pattern_of(self.added)

    @classmethod
    def load(
        cls, source: str | os.PathLike, *, chat_template: str | None = None, key: str = "tokenizer"
    ) -> "Tokenizer":
        """Read a tokenizer from a folder or a hub id.

        Args:
          source: folder with tokenizer.json, or with tokenizer.model (sentencepiece) or vocab.json and merges.txt only.
          chat_template: a Jinja template that replaces the folder's own; a base model has none.
          key: of the config, named in errors.

        Raises:
          BadInput: no such folder or hub id, or no tokenizer in it.
        """
        folder = hub.fetch(fetched(source), FETCHED, key)
        settings = read_settings(folder)
        backend = read_backend(folder, settings)
        named = [read_object(folder / name).get("eos_token_id") for name in EOS_FILES]
        eos = [id for ids in named for id in (ids if isinstance(ids, list) else [ids]) if id is not None]
        return cls(backend, settings=settings, chat_template=chat_template, eos_ids=eos, folder=folder)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: no added token is parsed, nothing is added."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def encode_markup(self, text: str) -> list[int]:
        """Ids of our own text (template, delimiters): added tokens are parsed, nothing is added."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_parts(self, parts: Iterable[tuple[str, bool]]) -> list[int]:
        """Ids of a text made of parts `(text, markup)`: only in markup parts are added tokens parsed.

        The text is cut at those tokens alone, and each span between two of them is encoded as one string, since the
        tokenizer merges across the borders of parts (`\\n` + `\\n` is one id).
        """
        parts = list(parts)
        marks = Marks("".join(text for text, _ in parts))
        marked = (text if is_markup else marks.hide(text, self._added_text) for text, is_markup in parts)
        return self._encode_marked("".join(marked), marks)

    def _encode_marked(self, text: str, marks: Marks) -> list[int]:
        if not marks.hidden:
            return self.encode_markup(text)
        ids, begin = [], 0
        encoding = self._backend.encode(text, add_special_tokens=False)
        for id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            # The text itself must spell the token: a normaliser may make one out of a user's look-alike.
            if self.added.get(text[start:end].strip()) == id:
                ids += self._encode_span(marks.show(text[begin:start]), begin == 0)
                ids.append(id)
                begin = end
        return ids + self._encode_span(marks.show(text[begin:]), begin == 0)

    def _encode_span(self, text: str, is_first: bool) -> list[int]:
        if not text:
            return []
        backend = self._plain if is_first else self._plain_inner
        return backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids: added tokens as their text, broken UTF-8 and ids the tokenizer lacks as U+FFFD, spaces as is."""
        table = self.token_bytes()
        parts = (table[id] if 0 <= id < self.size else b"\xff" for id in ids)
        return b"".join(parts).decode("utf-8", errors="replace")

    def token_bytes(self) -> list[bytes]:
        """The exact bytes of each id (added tokens: their text in UTF-8; an id that stands for nothing: empty)."""
        return self._token_bytes

    @functools.cached_property
    def _token_bytes(self) -> list[bytes]:
        table = [b""] * self.size
        convert = bytes_converter(self._backend)
        for text, id in self._backend.get_vocab(with_added_tokens=True).items():
            table[id] = text.encode("utf-8") if text in self.added else convert(text)
        return table

    def chat_text(
        self, messages: Sequence[Mapping[str, Any]], *, generation_prompt: bool, continue_final: bool = False
    ) -> str:
        """The chat template's text of `messages`.

        Args:
          messages: `{"role": ..., "content": ...}`, and whatever else the template reads (`tool_calls`).
          generation_prompt: end with the header of the next assistant turn.
          continue_final: leave the last message open instead, so that it can be continued.

        Raises:
          BadInput: there is no template, or the template refuses these messages.
        """
        if self.chat_template is None:
            raise BadInput(
                f"tokenizer {self.folder or 'made in memory'} has no chat template (a base model?); "
                "give prompts as text or load it with chat_template=..."
            )
        names = {"add_generation_prompt": generation_prompt, "continue_final_message": continue_final}
        return render_template(self.chat_template, messages, **names, **self._template_names())

    def chat_ids(
        self, messages: Sequence[Mapping[str, Any]], *, generation_prompt: bool, continue_final: bool = False
    ) -> list[int]:
        """Ids of `chat_text`, in which only the template's own added tokens are added tokens.

        What messages spell out is plain text (`mark_messages`), but for think tags and the like (not control tokens)
        in an assistant turn, where the template reads them.

        Raises:
          BadInput: as `chat_text`; or the template alters an added token that a message spells out.
        """
        return self._encode_marked(*self._marked_chat(messages, generation_prompt, continue_final))

    def chat_pieces(self, messages: Sequence[Mapping[str, Any]], cut: str) -> list[tuple[str, list[int]]]:
        """Text and tokens of the chat's prompt (`generation_prompt`), cut where `cut` stands, each piece by itself.

        Raises:
          BadInput: as `chat_ids`.
        """
        text, marks = self._marked_chat(messages, True, False)
        return [(marks.show(piece), self._encode_marked(piece, marks)) for piece in text.split(cut)]

    def _marked_chat(
        self, messages: Sequence[Mapping[str, Any]], generation_prompt: bool, continue_final: bool
    ) -> tuple[str, Marks]:
        def render(rows: Sequence[Mapping[str, Any]]) -> str:
            return self.chat_text(rows, generation_prompt=generation_prompt, continue_final=continue_final)

        def may_be_read(message: Mapping[str, Any], text: str) -> bool:
            is_control = self._backend.get_added_tokens_decoder()[self.added[text]].special
            return message.get("role") == "assistant" and not is_control

        return mark_messages(render, messages, self._added_text, may_be_read)

    def save(self, folder: str | os.PathLike) -> None:
        """Write the tokenizer's files into `folder`, byte by byte as they were read where they exist."""
        target = pathlib.Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        if self.folder is None:
            self._backend.save(str(target / "tokenizer.json"))
            write_json(
                target / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **self._settings}
            )
            if self.eos_ids and not (target / "generation_config.json").exists():
                write_json(target / "generation_config.json", {"eos_token_id": sorted(self.eos_ids)})
        elif self.folder.resolve() != target.resolve():
            for name in TOKENIZER_FILES:
                if (self.folder / name).is_file():
                    shutil.copyfile(self.folder / name, target / name)
        if self._template_is_new and self.chat_template is not None:
            (target / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")

    def _template_names(self) -> dict[str, str]:
        """`bos_token`, `eos_token` and the like, which templates print."""
        return {
            key: token_text(value)
            for key, value in self._settings.items()
            if key.endswith("_token") and isinstance(value, (str, dict))
        }


def _template(settings: Mapping[str, Any]) -> str | None:
    """The chat template of tokenizer_config.json: a text, or a list of named ones of which `default` is meant."""
    template = settings.get("chat_template")
    if isinstance(template, list):
        return next((entry["template"] for entry in template if entry["name"] == "default"), None)
    return template


def byte_tokenizer() -> Tokenizer:
    """A tokenizer that needs no file: every byte is an id, and the special tokens of the chat format."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return Tokenizer(backend, settings={"eos_token": "<|im_end|>"})
