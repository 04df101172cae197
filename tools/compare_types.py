"""What weights and cache in int8 or bfloat16 lose against float32, on real text, through the decode engine.

    python tools/compare_types.py MODEL TRACES [rows=24] [length=512] [ids=64]

MODEL is a folder in Hugging Face format, TRACES a JSONL file with `model_response`. One JSON line for each choice of
types: the perplexity of the traces after their first eighth, the share of positions at which the most likely id is that
of float32, and of greedy completions of `ids` ids (prompts: the first eighth) the share of equal ids and of equal rows.
"""

import json
import pathlib
import sys
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from s1jax.checkpoint import hf
from s1jax.control import CONTROLS, automata
from s1jax.control.free import FreeConfig
from s1jax.engine.config import EngineConfig
from s1jax.engine.engine import Engine
from s1jax.engine.requests import Request
from s1jax.engine.sampling import SamplingConfig
from s1jax.parallel.mesh import MeshConfig, make_mesh
from s1jax.records import read_jsonl
from s1jax.text.tokens import Tokenizer

FREE = FreeConfig()
TYPES = {
    "float32": {},
    "bfloat16 weights": {"weights": "bfloat16"},
    "bfloat16 cache": {"cache": "bfloat16"},
    "int8 weights": {"weights": "int8"},
    "int8 cache": {"cache": "int8"},
    "int8 both": {"weights": "int8", "cache": "int8"},
}


def texts_of(path: str, tokenizer: Tokenizer, rows: int, length: int) -> list[tuple[int, ...]]:
    """The first `length` ids of the first traces that are as long, spread over the file."""
    long = [ids for row in read_jsonl(path) if len(ids := tokenizer.encode_markup(row["model_response"])) >= length]
    return [tuple(ids[:length]) for ids in long[:: max(1, len(long) // rows)][:rows]]


def decode(engine: Engine, tokenizer: Tokenizer, texts: Sequence[tuple[int, ...]], ids: int) -> list[tuple[int, ...]]:
    """Greedy completions of the first eighth of each text."""
    for index, text in enumerate(texts):
        prompt = text[: len(text) // 8]
        row = CONTROLS["free"].admit(
            FREE, tokenizer, prompt_length=len(prompt), max_length=engine.max_length, max_new_tokens=ids
        )
        engine.submit(Request(f"{index}", 0, 0, prompt, row, SamplingConfig()))
    return [done.token_ids for done in engine.run()]


def forced(engine: Engine, tokenizer: Tokenizer, texts: Sequence[tuple[int, ...]]) -> tuple[float, np.ndarray]:
    """Perplexity of the texts after their first eighth, and the most likely id behind each of a few of their prefixes.

    Scores are read from a cache of the engine's type, as decoding reads it.
    """
    scores = np.concatenate([engine.score(text)[len(text) // 8 :] for text in texts])
    for index, text in enumerate(texts):
        for cut in range(len(text) // 8, len(text), len(text) // 8):
            row = CONTROLS["free"].admit(
                FREE, tokenizer, prompt_length=cut, max_length=engine.max_length, max_new_tokens=1
            )
            engine.submit(Request(f"{index}-{cut}", 0, 0, text[:cut], row, SamplingConfig()))
    return float(np.exp(-scores.mean())), np.array([done.token_ids[0] for done in engine.run()])


def compare(
    folder: str, traces: str, *, rows: int, length: int, ids: int, names: Sequence[str] = tuple(TYPES)
) -> Iterator[dict]:
    """One record for each choice of types; the first must be float32, with which the others are compared."""
    tokenizer = Tokenizer.load(folder)
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, context=1, tensor=1), jax.devices()[:1])
    model = hf.load(folder, mesh=mesh, dtype="float32", stacked=False)
    control = automata(tokenizer, model.config.V, [FREE])
    texts, exact = texts_of(traces, tokenizer, rows, length), None
    for name in names:
        config = EngineConfig(classes=((8, length + ids),), max_length=length + ids, prefill_ids=512, **TYPES[name])
        engine = Engine(model, tokenizer, config, control, dtype="float32")
        found = (*forced(engine, tokenizer, texts), decode(engine, tokenizer, texts, ids))
        exact = exact or found
        pairs = list(zip(found[2], exact[2], strict=True))
        equal = [np.mean([a == b for a, b in zip(one, other, strict=False)]) for one, other in pairs]
        yield {
            "compare": "types", "types": name, "texts": len(texts), "scored_ids": len(texts) * (length - length // 8),
            "perplexity": found[0], "perplexity_by_float32": found[0] / exact[0] - 1,
            "same_next_id": float(np.mean(found[1] == exact[1])), "next_ids": len(found[1]),
            "same_greedy_ids": float(np.mean(equal)), "same_greedy_rows": float(np.mean([a == b for a, b in pairs])),
        }  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Compare and print."""
    folder, traces, *pairs = arguments
    options = {"rows": 24, "length": 512, "ids": 64, **{k: int(v) for k, v in (pair.split("=") for pair in pairs)}}
    for record in compare(str(pathlib.Path(folder)), traces, **options):
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
