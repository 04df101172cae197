"""The peers of bench_train.py, each in a process and, if need be, an environment of its own. Imports nothing of s1jax.

    python tools/bench_train_peers.py transformers|tunix '{"D": 896, ..., "rows": 1, "length": 512, "dtype": "float32"}'

Protocol: prints a JSON line when it is ready; for each number n read from standard input it makes n updates and prints
`{"seconds": ..., "loss": ...}`.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Updates = Callable[[int], float]


def serve(make: Callable[[], tuple[dict[str, Any], Updates]]) -> None:
    """Answer until standard input ends. `make` gives versions, and a function that makes n updates and waits."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else is printed goes to standard error
    versions, updates = make()
    started = time.perf_counter()
    loss = updates(1)
    print(
        json.dumps({"versions": versions, "first_seconds": time.perf_counter() - started, "loss": loss}), file=answers
    )
    for line in sys.stdin:
        started = time.perf_counter()
        loss = updates(int(line))
        print(json.dumps({"seconds": time.perf_counter() - started, "loss": loss}), file=answers)


def transformers_updates(job: dict[str, Any]) -> tuple[dict[str, Any], Updates]:
    """Qwen2ForCausalLM with SDPA attention, torch's AdamW (fused) and gradient clipping."""
    import torch
    import transformers

    config = transformers.Qwen2Config(
        vocab_size=job["V"],
        hidden_size=job["D"],
        intermediate_size=job["F"],
        num_hidden_layers=job["L"],
        num_attention_heads=job["K"] * job["G"],
        num_key_value_heads=job["K"],
        tie_word_embeddings=job["tied"],
        max_position_embeddings=32768,
        use_cache=False,
    )
    dtype = getattr(torch, job["dtype"])
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    if job["remat"] != "none":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    adam = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=1e-4, fused=True)
    ids = torch.randint(0, job["V"], (job["rows"], job["length"]))

    def updates(count: int) -> float:
        loss = torch.zeros(())
        for _ in range(count):
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            adam.zero_grad()
        return loss.item()

    versions = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    return versions, updates


def tunix_updates(job: dict[str, Any]) -> tuple[dict[str, Any], Updates]:
    """The jitted step of `tunix.sft.peft_trainer.PeftTrainer` with its own loss and its own Qwen2."""
    import importlib.metadata

    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from flax import nnx  # pyright: ignore
    from tunix.models.qwen2 import model as qwen2  # pyright: ignore[reportMissingImports]
    from tunix.sft import peft_trainer  # pyright: ignore[reportMissingImports]

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
        dtype=jnp.dtype(job["dtype"]),
        remat_config=qwen2.RematConfig.NONE if job["remat"] == "none" else qwen2.RematConfig.DECODER,
    )
    model = qwen2.Qwen2(config, rngs=nnx.Rngs(0))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-5, b1=0.9, b2=0.95, weight_decay=1e-4))
    trainer = peft_trainer.PeftTrainer(model, optimizer, peft_trainer.TrainingConfig(eval_every_n_steps=0, max_steps=1))
    rows, length = job["rows"], job["length"]
    batch = {
        "input_tokens": jnp.asarray(np.random.default_rng(0).integers(0, job["V"], (rows, length)), jnp.int32),
        "input_mask": jnp.ones((rows, length), bool),
        "positions": jnp.broadcast_to(jnp.arange(length), (rows, length)),
        "attention_mask": jnp.broadcast_to(jnp.tri(length, dtype=bool), (rows, length, length)),
    }
    step, _ = trainer.jit_train_and_eval_step(cache_nnx_graph=True)

    def updates(count: int) -> float:
        loss: Any = 0.0
        for _ in range(count):
            loss, *_ = step(batch)
        return float(jax.block_until_ready(loss))

    return {name: importlib.metadata.version(name) for name in ("google-tunix", "jax", "flax")}, updates


if __name__ == "__main__":
    updates_of = {"transformers": transformers_updates, "tunix": tunix_updates}[sys.argv[1]]
    serve(lambda: updates_of(json.loads(sys.argv[2])))
