"""transformers on an exported model: the same logits and the same greedy ids, on prompts of an evaluation.

    .venv/bin/python tools/compare_export.py runs/real_input/train/hf runs/real_input/math500/budget-64/samples.jsonl

Takes the first 8 prompts, lets transformers complete each by 64 greedy ids (`repetition_penalty=1.0`) and runs both
models over prompt and completion. Ids are equal if ours has its largest logit at each of them. One JSON line; exit
code 1 if the largest difference of a logit exceeds 1e-4 or an id differs.
"""

import json
import sys

import jax.numpy as jnp
import numpy as np
import torch
import transformers

from s1jax.checkpoint import hf
from s1jax.models import decoder, layers
from s1jax.records import read_jsonl

PROMPTS, NEW_IDS, TOLERANCE = 8, 64, 1e-4


def our_logits(model: decoder.Model, tokens_BT: np.ndarray) -> np.ndarray:
    """Float32 logits of whole rows under a causal mask."""
    T = tokens_BT.shape[1]
    mask_BTS = jnp.asarray(np.tril(np.ones((1, T, T), bool)))

    def attend(q, k, v, state):
        return layers.attention(q, k, v, mask_BTS), state

    x_BTD, _ = decoder.forward(model, tokens_BT, np.arange(T)[None], attend)
    return np.asarray(decoder.logits(model, x_BTD))


def main(folder: str, samples: str) -> int:
    """Compare and print; returns the exit code."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours = hf.load(folder, dtype="float32")
    largest, equal = 0.0, 0
    rows = read_jsonl(samples)[:PROMPTS]
    for row in rows:
        prompt = torch.tensor([row["prompt_ids"]])
        with torch.no_grad():
            tokens = theirs.generate(
                prompt, max_new_tokens=NEW_IDS, do_sample=False, repetition_penalty=1.0, top_k=None
            )
            expected = theirs(tokens).logits.numpy()
        got = our_logits(ours, tokens.numpy())
        largest = max(largest, float(np.abs(got - expected).max()))
        begin = prompt.shape[1]
        equal += bool((got[0, begin - 1 : -1].argmax(-1) == tokens[0, begin:].numpy()).all())
    print(json.dumps({"prompts": len(rows), "new_ids": NEW_IDS, "equal_ids": equal, "largest_difference": largest}))
    return int(largest > TOLERANCE or equal < len(rows))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
