"""The road on real input, in small: the recipes of configs/real_input with few steps and ten problems."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from s1jax.records import Sample, read_jsonl, to_completion, write_jsonl

CONFIGS = pathlib.Path(__file__).parent.parent.parent / "configs" / "real_input"
BUDGETS = (4, 12)


@pytest.fixture(scope="module")
def out(shared, tmp_path_factory):
    """Everything that `make real-input` makes, in one process of one device."""
    out = tmp_path_factory.mktemp("real_input")
    write_jsonl(out / "prompts.jsonl", ({"question": text} for text in ("What is 12 * 12?", "Prove it.")))
    model, engine = f"model={out}/train/hf", ["engine.slots=10", "engine.window=8", "engine.max_length=1024"]
    evaluated = [model, "limit=5", f"budgets={list(BUDGETS)}", "control.answer_token_budget=4", *engine]
    greedy = ["control.kind=free", "sampling.max_new_tokens=8", "dtype=float32", *engine]
    commands = [
        ["curate", f"{CONFIGS}/curate.yaml", f"out={out}/curate"],
        [
            *("train", f"{CONFIGS}/train.yaml", f"data.rows={out}/curate/rows.jsonl", f"out={out}/train"),
            *(f"tokenizer={shared}/tokenizer/qwen2.5", "steps=4", "optimizer.warmup_steps=0", "data.block=512"),
        ],
        ["eval", f"{CONFIGS}/eval_aime24.yaml", *evaluated, f"out={out}/aime24"],
        ["eval", f"{CONFIGS}/eval_math500.yaml", *evaluated, f"out={out}/math500"],
        ["report", f"reports=[{out}/math500]", f"out={out}/report"],
        ["generate", model, f"prompts={out}/prompts.jsonl", *greedy, f"out={out}/generate"],
    ]
    code = f"from s1jax.__main__ import main\nfor c in {commands!r}:\n    assert main(c) == 0, c"
    environment = {
        **os.environ,
        "S1JAX_SHARED": str(shared.parent),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_loss_falls(out):
    losses = [row["loss"] for row in read_jsonl(out / "train" / "metrics.jsonl")]
    # Logits of fresh weights have a variance of one: the norm gives 32 numbers of size one, the table has 1 / sqrt(32).
    assert len(losses) == 4 and losses[0] == pytest.approx(np.log(152064) + 0.5, abs=0.1)
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.parametrize("benchmark", ["aime24", "math500"])
def test_every_budget_holds_and_every_sample_is_there(out, benchmark):
    for budget in BUDGETS:
        folder = out / benchmark / f"budget-{budget}"
        samples = [to_completion(row, Sample) for row in read_jsonl(folder / "samples.jsonl")]
        report = json.loads((folder / "report.json").read_text())
        assert len(samples) == 5 and report["benchmark"] == benchmark
        for sample in samples:
            assert sample.thinking_tokens <= budget and sample.answer_tokens <= 4
            assert max(sample.token_ids) < 151665  # rows of the embedding that no id of the tokenizer has
        assert report["accuracy"] == np.mean([sample.correct for sample in samples])


def test_report_says_that_nothing_was_gained(out):
    scaling = json.loads((out / "report" / "scaling.json").read_text())
    assert scaling["control"]["value"] == 1.0 and scaling["performance"]["value"] == 0.0
    assert any("not" in sentence or "no " in sentence.lower() for sentence in scaling["findings"])


def test_transformers_computes_the_same_from_the_export(out):
    import jax.numpy as jnp
    import torch
    import transformers

    from s1jax.checkpoint import hf
    from s1jax.models import decoder, layers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(out / "train" / "hf", dtype=torch.float32).eval()
    ours = hf.load(str(out / "train" / "hf"), dtype="float32")
    rows = read_jsonl(out / "generate" / "completions.jsonl")
    assert len(rows) == 2
    for row in rows:
        prompt, ids = row["prompt_ids"], row["token_ids"]
        generated = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=8, do_sample=False, repetition_penalty=1.0, top_k=None
        )
        assert generated[0, len(prompt) :].tolist()[: len(ids)] == ids
        tokens_BT = np.asarray([prompt + ids])
        mask_BTS = np.tril(np.ones((1, tokens_BT.shape[1], tokens_BT.shape[1]), bool))

        def causal(q, k, v, state, mask_BTS=mask_BTS):
            return layers.attention(q, k, v, jnp.asarray(mask_BTS)), state

        positions_BT = np.arange(tokens_BT.shape[1])[None]
        logits = decoder.logits(ours, decoder.forward(ours, tokens_BT, positions_BT, causal)[0])
        with torch.no_grad():
            expected = theirs(torch.tensor(tokens_BT)).logits.numpy()
        np.testing.assert_allclose(np.asarray(logits), expected, atol=1e-4, rtol=0)
