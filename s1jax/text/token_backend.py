"""What `tokens.py` needs from the tokenizers library: reading files, a copy without added tokens, and bytes of ids."""

import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import tokenizers

from s1jax.config import BadInput

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
EOS_FILES = ("generation_config.json", "config.json")
FETCHED = (*TOKENIZER_FILES, *EOS_FILES)
SPACE = "\u2581"  # how sentencepiece writes a space
PROBE = "Wait,  so 3.14 = \n\n\tx\u00b2 \ufb01t \u4f60 </think>"
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # how sentencepiece writes a byte


def read_settings(folder: pathlib.Path) -> dict[str, Any]:
    """tokenizer_config.json, completed from special_tokens_map.json and chat_template.jinja."""
    settings = {**read_object(folder / "special_tokens_map.json"), **read_object(folder / "tokenizer_config.json")}
    template = folder / "chat_template.jinja"
    return {**settings, "chat_template": template.read_text(encoding="utf-8")} if template.is_file() else settings


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in `path`, empty if there is no such file. Raises BadInput when it is something else."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not JSON ({error}); fetch it again") from None
    if not isinstance(data, dict):
        raise BadInput(f"{path} holds a {type(data).__name__}, not a JSON object; fetch it again")
    return data


def read_backend(folder: pathlib.Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer in `folder`: tokenizer.json as it stands, else what transformers makes of the older files.

    tokenizer.json is read directly since transformers 5 rebuilds some of it from the class named in the settings.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise BadInput(f"{folder} holds no tokenizer.json, tokenizer.model or vocab.json; give a tokenizer's folder")
    try:
        backend = _parse(folder, settings)
    except Exception as error:  # the libraries raise bare Exception for a file they cannot parse
        raise BadInput(f"the tokenizer in {folder} cannot be read ({error}); fetch it again") from None
    if not (folder / "tokenizer.json").is_file() and (folder / "tokenizer.model").is_file():
        _compare_with_sentencepiece(backend, folder)
    for id, entry in sorted(settings.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0])):
        _add(backend, int(id), entry, folder)
    return backend


def _parse(folder: pathlib.Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    if (folder / "tokenizer.json").is_file():
        return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    import transformers

    # A bare sentencepiece model names no class; AutoTokenizer would forget the space that it puts before a text.
    is_bare = (folder / "tokenizer.model").is_file() and "tokenizer_class" not in settings
    cls = transformers.LlamaTokenizer if is_bare else transformers.AutoTokenizer
    return cls.from_pretrained(str(folder)).backend_tokenizer


def _compare_with_sentencepiece(backend: tokenizers.Tokenizer, folder: pathlib.Path) -> None:
    """Refuse a conversion that does not encode as the model itself: converters drop some normalisers."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    expected, got = model.encode(PROBE), backend.encode(PROBE, add_special_tokens=False).ids
    if got != expected:
        raise BadInput(
            f"{folder}/tokenizer.model encodes {PROBE!r} as {expected}, its conversion as {got}; "
            "put the model's own tokenizer.json there"
        )


def _add(backend: tokenizers.Tokenizer, id: int, entry: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Add a token that only tokenizer_config.json lists; it must get the id that stands there."""
    if id in backend.get_added_tokens_decoder():
        return
    flags = {key: entry[key] for key in ("single_word", "lstrip", "rstrip", "normalized") if key in entry}
    backend.add_tokens([tokenizers.AddedToken(entry["content"], special=entry.get("special", False), **flags)])
    got = backend.token_to_id(entry["content"])
    if got != id:
        raise BadInput(
            f"{folder}/tokenizer_config.json gives {entry['content']!r} id {id}, tokenizer.json {got}; fetch both again"
        )


def token_text(value: Any) -> str:
    """A token of tokenizer_config.json, written as text or as an object with `content`."""
    return value["content"] if isinstance(value, Mapping) else value


def without_added(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A tokenizer with the same vocabulary that parses no added token."""
    plain = _bare(backend, backend.model)
    added = {token.content: id for id, token in backend.get_added_tokens_decoder().items()}
    unknown = getattr(backend.model, "unk_token", None)
    leaks = [text for text, id in added.items() if text != unknown and id in plain.encode(text).ids]
    if not leaks:
        return plain
    # A Unigram model, or one with ignore_merges, holds such texts as ordinary pieces: rename them beyond reach there.
    model = json.loads(backend.to_str())["model"]
    names = {text: f"\U0010fffe{added[text]}\U0010fffe" for text in leaks}
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(text, text): id for text, id in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in vocabulary]
    return _bare(backend, tokenizers.Tokenizer.from_str(json.dumps({"version": "1.0", "model": model})).model)


def _bare(backend: tokenizers.Tokenizer, model: Any) -> tokenizers.Tokenizer:
    plain = tokenizers.Tokenizer(model)
    if backend.normalizer is not None:
        plain.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        plain.pre_tokenizer = backend.pre_tokenizer
    return plain


def inside_text(plain: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """`plain` for a span that is not the first of its text: some pre-tokenizers put a space before the first only."""
    if plain.pre_tokenizer is None:
        return plain
    state = plain.pre_tokenizer.__getstate__().decode("utf-8")
    if '"prepend_scheme":"first"' not in state:
        return plain
    state = json.loads(state.replace('"prepend_scheme":"first"', '"prepend_scheme":"never"'))
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    carrier = tokenizers.Tokenizer.from_str(json.dumps({"version": "1.0", "model": empty, "pre_tokenizer": state}))
    inner = _bare(plain, plain.model)
    inner.pre_tokenizer = carrier.pre_tokenizer
    return inner


def bytes_converter(backend: tokenizers.Tokenizer) -> Callable[[str], bytes]:
    """The function from a vocabulary entry's spelling to its bytes. Raises BadInput for an unknown kind of decoder."""
    state = json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else {}
    steps = {step.get("type"): step for step in state.get("decoders", [state])}
    if "ByteLevel" in steps:
        alphabet = {char: byte for byte, char in byte_alphabet().items()}
        return lambda text: (
            bytes(alphabet[char] for char in text) if all(char in alphabet for char in text) else text.encode("utf-8")
        )
    if steps.keys() & {"ByteFallback", "Metaspace", "Replace"}:
        return lambda text: _sentencepiece_bytes(text, "ByteFallback" in steps)
    raise BadInput(f"tokenizer decoder {sorted(map(str, steps))} is neither byte-level nor sentencepiece; convert it")


def _sentencepiece_bytes(text: str, byte_fallback: bool) -> bytes:
    match = BYTE.fullmatch(text) if byte_fallback else None
    return bytes([int(match[1], 16)]) if match else text.replace(SPACE, " ").encode("utf-8")


def byte_alphabet() -> dict[int, str]:
    """The character that byte-level BPE writes for each byte (openai/gpt-2@9b63575 src/encoder.py:9).

    Printable bytes stand for themselves, the others for the characters from 256 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in sorted(printable)} | {byte: chr(256 + i) for i, byte in enumerate(others)}
