"""The peers of bench_decode.py, each in a process and, if need be, an environment of its own. Imports nothing of s1jax.

    python tools/bench_decode_peers.py transformers|tunix '{"folder": "...", "D": 896, ..., "length": 200}'

Protocol: prints a JSON line of versions when it is ready; for each line `{"prompts": [[ids], ...], "new": n}` read from
standard input it completes the prompts greedily by n ids each and prints `{"seconds": ..., "ids": [[...], ...]}`.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Complete = Callable[[list[list[int]], int], list[list[int]]]


def serve(make: Callable[[], tuple[dict[str, Any], Complete]]) -> None:
    """Answer until standard input ends. `make` gives versions, and a function that completes prompts."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else is printed goes to standard error
    versions, complete = make()
    print(json.dumps(versions), file=answers)
    for line in sys.stdin:
        asked = json.loads(line)
        started = time.perf_counter()
        ids = complete(asked["prompts"], asked["new"])
        print(json.dumps({"seconds": time.perf_counter() - started, "ids": ids}), file=answers)


def with_transformers(job: dict[str, Any]) -> tuple[dict[str, Any], Complete]:
    """`generate` of Qwen2ForCausalLM, with its default cache and attention."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32).eval()

    def complete(prompts: list[list[int]], new: int) -> list[list[int]]:
        with torch.inference_mode():
            out = model.generate(
                torch.tensor(prompts),
                do_sample=False,
                max_new_tokens=new,
                min_new_tokens=new,
                pad_token_id=0,
                eos_token_id=job["V"] - 1,
            )
        return out[:, len(prompts[0]) :].tolist()

    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    return {**versions, "threads": torch.get_num_threads()}, complete


class Ids:
    """A tokenizer whose texts are lists of ids. No id ends a text; the padding is one that is never drawn."""

    def __init__(self, pad: int) -> None:
        self._pad = pad

    def encode(self, text: str) -> list[int]:
        """The list."""
        return json.loads(text)

    def decode(self, ids: Any) -> str:
        """Nothing: texts are not compared."""
        return ""

    def bos_id(self) -> int:
        """None is put."""
        return 0

    def eos_id(self) -> int:
        """None ends."""
        return -1

    def pad_id(self) -> int:
        """The padding."""
        return self._pad


def with_tunix(job: dict[str, Any]) -> tuple[dict[str, Any], Complete]:
    """`tunix.generate.sampler.Sampler` over Tunix's Qwen2."""
    import importlib.metadata

    import jax
    import jax.numpy as jnp
    from tunix.generate.sampler import CacheConfig, Sampler  # pyright: ignore[reportMissingImports]
    from tunix.models.qwen2 import model as qwen2  # pyright: ignore[reportMissingImports]
    from tunix.models.qwen2 import params  # pyright: ignore[reportMissingImports]

    config = qwen2.ModelConfig(
        num_layers=job["L"],
        vocab_size=job["V"],
        embed_dim=job["D"],
        hidden_dim=job["F"],
        num_heads=job["K"] * job["G"],
        head_dim=job["H"],
        num_kv_heads=job["K"],
        rope_theta=1_000_000,
        norm_eps=1e-6,
        use_tied_embedding=job["tied"],
        dtype=jnp.float32,
    )
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    model = params.create_model_from_safe_tensors(job["folder"], config, mesh, dtype=jnp.float32)
    sampler = Sampler(model, Ids(job["V"] - 1), CacheConfig(job["length"], job["L"], job["K"], job["H"]))

    def complete(prompts: list[list[int]], new: int) -> list[list[int]]:
        asked = [json.dumps(prompt) for prompt in prompts]
        out = sampler(asked, new, max_prompt_length=len(prompts[0]), temperature=0.0)
        return [[int(id) for id in row] for row in out.tokens]

    return {name: importlib.metadata.version(name) for name in ("google-tunix", "jax", "flax")}, complete


if __name__ == "__main__":
    make = {"transformers": with_transformers, "tunix": with_tunix}[sys.argv[1]]
    serve(lambda: make(json.loads(sys.argv[2])))
