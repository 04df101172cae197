"""The optimizer: golden learning rates, and twenty updates beside torch's AdamW on the same transformers model."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from train_cases import RECIPE, TINY, examples, model, one_device, rows

from s1jax.checkpoint import hf, layout
from s1jax.config import BadInput
from s1jax.models.decoder import named
from s1jax.train import optimizer
from s1jax.train.optimizer import OptimizerConfig, learning_rate, warmup_steps
from s1jax.train.packing import loss_weights
from s1jax.train.step import batch_sharding, gradients, place_batch

# Upstream's 315 steps (5 epochs of 1,000 rows in batches of 16), from transformers' schedule in float64.
GOLDEN_RATES = {0: 0.0, 1: 6.25e-7, 8: 5e-6, 15: 9.375e-6, 16: 1e-5, 17: 9.999724e-6, 100: 8.175772e-6}
GOLDEN_RATES |= {165: 5.026267e-6, 200: 3.226976e-6, 314: 2.7599e-10}
STEPS = 20
FAST = OptimizerConfig(learning_rate=1e-3, weight_decay=0.1, clip=0.5)


def test_golden_learning_rates():
    config = OptimizerConfig()
    assert warmup_steps(config, 315) == 16
    for step, rate in GOLDEN_RATES.items():
        np.testing.assert_allclose(learning_rate(config, 315, jnp.int32(step)), rate, rtol=1e-5)


def test_rates_end_where_they_are_told_to():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=3, final=0.1)
    rates = [float(learning_rate(config, 10, jnp.int32(step))) for step in (0, 1, 3, 10, 11)]
    np.testing.assert_allclose(rates, [0, 1 / 3, 1, 0.1, 0.1], rtol=1e-6)
    with pytest.raises(BadInput, match="30 warm-up steps of 20 in all"):
        warmup_steps(OptimizerConfig(warmup_steps=30), 20)


def test_decay_reaches_all_but_biases():
    decays = named(optimizer.decays(model()))
    assert {name for name, decayed in decays.items() if not decayed} == {f"blocks.{x}_bias" for x in "qkv"}


def test_second_moment_in_bfloat16():
    decoder = model()

    def two_updates(config):
        def run(grads):
            state = optimizer.init(config, STEPS, decoder)
            updated = decoder
            for _ in range(2):
                updated, state = optimizer.update(config, STEPS, grads, state, updated)
            return optax.tree.sub(updated, decoder), (state[1].mu, state[1].nu)

        return jax.jit(run)(decoder)

    half, moments = two_updates(dataclasses.replace(FAST, mu="bfloat16", nu="bfloat16"))
    exact, _ = two_updates(FAST)
    assert {leaf.dtype for leaf in jax.tree.leaves(moments)} == {jnp.dtype(jnp.bfloat16)}
    assert optax.tree.norm(optax.tree.sub(half, exact)) < 0.02 * optax.tree.norm(exact)


# ---- beside torch


COMPILED = jax.jit(lambda decoder, batch: gradients(decoder, batch, RECIPE))
BATCHES = [examples(6, seed) for seed in range(STEPS)]


@pytest.fixture(scope="module")
def torch_run(tmp_path_factory):
    """`run(config) -> (losses, {tensor: change})` of transformers' model under torch's AdamW and clipping."""
    import torch
    from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("torch") / "model"
    hf.save(model(), folder)

    def run(config: OptimizerConfig):
        peer = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
        before = {name: p.detach().clone() for name, p in peer.named_parameters()}
        decayed = [p for name, p in peer.named_parameters() if "bias" not in name]
        rest = [p for name, p in peer.named_parameters() if "bias" in name]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        adam = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.b1, config.b2), eps=config.eps)
        schedule = get_cosine_schedule_with_warmup(adam, math.ceil(config.warmup * STEPS), STEPS)
        losses = []
        for group in BATCHES:
            total = sum(_example_loss(torch, peer, row) for row in group) / len(group)
            total.backward()
            torch.nn.utils.clip_grad_norm_(peer.parameters(), config.clip)
            adam.step()
            schedule.step()
            adam.zero_grad()
            losses.append(total.item())
        return losses, {name: (p.detach() - before[name]).numpy() for name, p in peer.named_parameters()}

    return run


def _example_loss(torch, peer, row):
    """transformers' own loss of one sequence with its prompt masked."""
    ids = torch.tensor([row.ids])
    labels = ids.clone()
    labels[:, : row.prompt_length] = -100
    return peer(input_ids=ids, labels=labels).loss


@pytest.fixture(scope="module")
def our_gradients():
    """`(model, step) -> (loss, gradients)` over packed rows; compiled once for all runs, mutated or not."""
    sharding = batch_sharding(one_device())
    batches = [place_batch(rows(group, 2, 96), 1, sharding) for group in BATCHES]
    return lambda decoder, step: COMPILED(decoder, batches[step])


def our_run(config, our_gradients, change_gradients=None):
    """Losses and changes by the names of the Hugging Face checkpoint."""
    decoder = start = model()
    state = optimizer.init(config, STEPS, decoder)
    update = jax.jit(lambda grads, state, decoder: optimizer.update(config, STEPS, grads, state, decoder))
    losses = []
    for step in range(STEPS):
        loss, grads = our_gradients(decoder, step) if change_gradients is None else change_gradients(decoder, step)
        decoder, state = update(grads, state, decoder)
        losses.append(float(loss))
    arrays, before = named(decoder), named(start)
    changes = {}
    for entry in layout.entries(TINY):
        change = np.asarray(arrays[entry.path]) - np.asarray(before[entry.path])
        change = change if entry.layer is None else change[entry.layer]
        changes[entry.name] = np.concatenate([block.copy() for block in layout.to_file(entry, change, change.dtype)])
    return losses, changes


def differences(ours, theirs):
    """Largest difference of a loss, and of a tensor's change relative to that change."""
    of_loss = max(abs(a - b) for a, b in zip(ours[0], theirs[0], strict=True))
    of_change = {k: np.linalg.norm(ours[1][k] - v) / np.linalg.norm(v) for k, v in theirs[1].items()}
    return of_loss, max(of_change.values())


@pytest.fixture(scope="module")
def torch_fast(torch_run):
    return torch_run(FAST)


@pytest.mark.parametrize("config", [OptimizerConfig(), FAST], ids=["recipe", "fast"])
def test_twenty_updates_are_torchs(config, torch_run, torch_fast, our_gradients):
    theirs = torch_fast if config is FAST else torch_run(config)
    of_loss, of_change = differences(our_run(config, our_gradients), theirs)
    assert of_loss < 1e-5 and of_change < 1e-3


def no_bias_correction(b1, b2, eps, **_):
    def update(grads, state, params=None):
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state[0], grads)
        nu = jax.tree.map(lambda n, g: b2 * n + (1 - b2) * g * g, state[1], grads)
        return jax.tree.map(lambda m, n: m / (jnp.sqrt(n) + eps), mu, nu), (mu, nu)

    def init(params):
        return jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params)

    return optax.GradientTransformation(init, update)


def eps_inside_the_root(b1, b2, eps, **options):
    return ADAM(b1, b2, 0.0, eps_root=eps, **options)


ADAM = optax.scale_by_adam
RATE = optimizer.learning_rate
MUTATIONS = {
    "no decay": lambda patch: dataclasses.replace(FAST, weight_decay=0.0),
    "decay on biases": lambda patch: patch(optimizer, "decays", lambda m: jax.tree.map(lambda _: True, m)),
    "no decay on norms": lambda patch: patch(
        optimizer,
        "decays",
        lambda m: jax.tree.unflatten(jax.tree.structure(m), ["bias" not in n and "norm" not in n for n in named(m)]),
    ),
    "no bias correction": lambda patch: patch(optax, "scale_by_adam", no_bias_correction),
    "eps inside the root": lambda patch: patch(optax, "scale_by_adam", eps_inside_the_root),
    "b2 of the library": lambda patch: dataclasses.replace(FAST, b2=0.999),
    "no clipping": lambda patch: dataclasses.replace(FAST, clip=None),
    "first rate not 0": lambda patch: patch(
        optimizer, "learning_rate", lambda config, steps, step: RATE(config, steps, step + 1)
    ),
    "warm-up rounded down": lambda patch: dataclasses.replace(FAST, warmup=0.0),
    "moments in bfloat16": lambda patch: dataclasses.replace(FAST, mu="bfloat16", nu="bfloat16"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_each_mutation_of_the_optimizer_is_seen(mutation, torch_fast, our_gradients, monkeypatch):
    config = MUTATIONS[mutation](monkeypatch.setattr) or FAST
    of_loss, of_change = differences(our_run(config, our_gradients), torch_fast)
    assert of_loss >= 1e-5 or of_change >= 1e-3, (of_loss, of_change)


def test_each_mutation_of_the_loss_is_seen(torch_fast, our_gradients):
    """Token norm, a prompt in the loss, and clipping of each micro-batch: all change what is minimised."""
    sharding = batch_sharding(one_device())
    whole = [[dataclasses.replace(row, prompt_length=1) for row in group] for group in BATCHES]
    token = [place_batch(rows(group, 2, 96, "token"), 1, sharding) for group in BATCHES]
    prompt = [place_batch(rows(group, 2, 96), 1, sharding) for group in whole]
    halves = [[place_batch(half, 1, sharding) for half in _halves(group)] for group in BATCHES]

    def clipped(decoder, step):
        parts = [COMPILED(decoder, half) for half in halves[step]]
        scaled = [optimizer.clip(FAST.clip).update(grads, optax.EmptyState())[0] for _, grads in parts]
        return sum(loss for loss, _ in parts), jax.tree.map(jnp.add, *scaled)

    for change in (lambda m, s: COMPILED(m, token[s]), lambda m, s: COMPILED(m, prompt[s]), clipped):
        of_loss, of_change = differences(our_run(FAST, our_gradients, change), torch_fast)
        assert of_loss >= 1e-5 or of_change >= 1e-3


def _halves(group):
    """The first and the last examples of a step, in rows of the usual shape and with the step's weights."""
    from s1jax.train.packing import fill

    weights = loss_weights(group, "example")
    for indices in ([0, 1, 2], [3, 4, 5]):
        yield fill(group, [indices, []], 96, weights)
