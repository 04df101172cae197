"""Whole runs: killed, stopped, damaged, moved to another mesh; and what a run refuses before its first step."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tokenizers
import yaml
from jax.sharding import SingleDeviceSharding

from s1jax.checkpoint import hf, store
from s1jax.checkpoint.folder import read_config
from s1jax.config import BadInput, to_dict
from s1jax.mesh import MeshConfig
from s1jax.models.decoder import Decoder, DecoderConfig, named
from s1jax.train.data import DataConfig
from s1jax.train.log import LogConfig, line
from s1jax.train.loss import LossConfig
from s1jax.train.optimizer import OptimizerConfig
from s1jax.train.packing import PackingConfig
from s1jax.train.run import RandomModel, SaveConfig, TrainRun, run
from s1jax.train.step import Recipe, initial_state

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = DecoderConfig("qwen2", D=32, K=2, G=2, H=8, F=48, V=280, L=2, rope_theta=1e4, tied=True, qkv_bias=True)
STEPS = 24
EXACT = ("step", "loss", "grad_norm", "learning_rate", "tokens")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a tokenizer, training rows and held-out rows, and with one persistent compilation cache."""
    folder = tmp_path_factory.mktemp("world")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=280, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["think answer user assistant Answer: 0 1 2 3 4"] * 4, trainer)
    (folder / "tokenizer").mkdir()
    backend.save(str(folder / "tokenizer" / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    for name, count, seed in (("rows", 37, 0), ("held_out", 9, 1)):
        rng = np.random.default_rng(seed)
        rows = [rng.integers(0, 10, rng.integers(1, 6)).tolist() for _ in range(count)]
        texts = [" ".join(map(str, row)) for row in rows]
        lines = [
            {"id": f"{name}{i}", "question": f"q {t}", "thinking": t[::-1], "answer": str(sum(row))}
            for i, (t, row) in enumerate(zip(texts, rows, strict=True))
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return folder


@pytest.fixture(scope="module")
def config(world):
    return TrainRun(
        model=RandomModel(SIZES),
        data=DataConfig(rows=str(world / "rows.jsonl"), block=128),
        tokenizer=str(world / "tokenizer"),
        eval_rows=str(world / "held_out.jsonl"),
        steps=STEPS,
        global_batch=8,
        micro_batch=2,
        packing=PackingConfig(rows=4, shapes=1, multiple=32),
        loss=LossConfig(chunk=0),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        dtype="float32",
        remat="none",
        mesh=MeshConfig(data=1, fsdp=1) if jax.device_count() == 1 else MeshConfig(data=1, fsdp=2, context=2, tensor=2),
        save=SaveConfig(every=7, keep=2, dtype="float32"),
        log=LogConfig(every=100, tensorboard=False),
        out=str(world / "undisturbed"),
    )


def metrics(out):
    rows = [json.loads(row) for row in (pathlib.Path(out) / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [tuple(row[key] for key in EXACT) for row in rows]


def tensors(out):
    return {name: np.asarray(x) for name, x in named(hf.load(pathlib.Path(out) / "hf")).items()}


@pytest.fixture(scope="module")
def undisturbed(config):
    """Metrics and exported tensors of a run that nothing happened to."""
    assert run(config) == pathlib.Path(config.out) / "hf"
    return metrics(config.out), tensors(config.out)


def assert_same_run(out, undisturbed):
    assert metrics(out) == undisturbed[0]
    for name, x in tensors(out).items():
        np.testing.assert_array_equal(x, undisturbed[1][name], err_msg=name)


def test_a_run_learns_and_leaves_what_it_says(config, undisturbed):
    out = pathlib.Path(config.out)
    rows, _ = undisturbed
    assert len(rows) == STEPS and rows[0][3] == 0.0 and rows[-1][1] < rows[0][1] - 1
    assert [c.step for c in store.saved(out / "checkpoints")] == [21, 24]
    validation = [json.loads(row) for row in (out / "validation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in validation] == [7, 14, 21, 24]
    assert read_config(out / "hf") == SIZES and (out / "hf" / "tokenizer.json").is_file()
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["tokens_per_second"] > 0 and last["mfu"] is None  # a CPU's peak is not known
    assert json.loads((out / "run.json").read_text())["seed"] == 42


def test_a_finished_run_is_left_alone(config, undisturbed):
    before = (pathlib.Path(config.out) / "hf" / "model.safetensors").stat().st_mtime_ns
    records = []
    run(config, progress=records.append)
    assert records == [] and metrics(config.out) == undisturbed[0]
    assert (pathlib.Path(config.out) / "hf" / "model.safetensors").stat().st_mtime_ns == before


# ---- killed with SIGKILL, in a process of its own


def start(config, world):
    """The same run as the user starts it."""
    path = world / f"{pathlib.Path(config.out).name}.yaml"
    path.write_text(yaml.safe_dump(to_dict(config)))
    command = [sys.executable, "-m", "s1jax", "train", str(path)]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(world / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.Popen(command, env={**os.environ, **cache}, stderr=subprocess.PIPE, text=True)


def kill_after(process, out, lines, seconds):
    """SIGKILL `seconds` after metrics.jsonl has `lines` lines."""
    path = pathlib.Path(out) / "metrics.jsonl"
    while process.poll() is None and not (path.exists() and path.read_text().count("\n") >= lines):
        time.sleep(0.005)
    time.sleep(seconds)
    process.kill()
    process.communicate()


def test_killed_anywhere_it_goes_on_bit_by_bit(config, undisturbed, world):
    config = dataclasses.replace(config, out=str(world / "killed"))
    rng = np.random.default_rng()
    seed = int(rng.integers(2**31))
    rng = np.random.default_rng(seed)
    for _ in range(2):
        kill_after(start(config, world), config.out, int(rng.integers(1, STEPS)), float(rng.uniform(0, 0.03)))
    run(config)
    assert metrics(config.out) == undisturbed[0], f"seed of the kills: {seed}"
    assert_same_run(config.out, undisturbed)


# ---- stopped by a signal, in this process


def stopping(signal_number, step):
    """A progress callback that sends this process a signal at a step."""

    def progress(record):
        if record["step"] == step:
            os.kill(os.getpid(), signal_number)

    return progress


@pytest.mark.parametrize(
    ("number", "leaves"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)], ids=["SIGTERM", "Ctrl-C"]
)
def test_a_signal_saves_and_the_same_command_goes_on(number, leaves, config, undisturbed, world, capfd):
    config = dataclasses.replace(
        config, out=str(world / f"stopped{number}"), save=SaveConfig(every=None, dtype="float32")
    )
    handler = signal.getsignal(number)
    with pytest.raises(leaves) as stop:
        run(config, progress=stopping(number, 5))
    if leaves is SystemExit:
        assert stop.value.code == 75
    assert signal.getsignal(number) == handler
    steps = len(metrics(config.out))
    assert 5 <= steps <= 8 and f"stopped after step {steps}, saved" in capfd.readouterr().err
    run(config)
    assert_same_run(config.out, undisturbed)


def test_a_damaged_newest_checkpoint_costs_only_steps(config, undisturbed, world, capfd):
    config = dataclasses.replace(config, out=str(world / "damaged"))
    with pytest.raises(SystemExit):
        run(config, progress=stopping(signal.SIGTERM, 18))
    newest = store.saved(pathlib.Path(config.out) / "checkpoints")[-1]
    next((newest.folder / "arrays").rglob("manifest.ocdbt")).unlink()
    run(config)
    said = capfd.readouterr().err
    assert f"checkpoint {newest.step} is passed over" in said and "going on from the checkpoint of step 14" in said
    assert_same_run(config.out, undisturbed)


def test_another_mesh_goes_on_with_the_same_losses(config, undisturbed, world):
    out = str(world / "moved")
    with pytest.raises(SystemExit):
        run(dataclasses.replace(config, out=out), progress=stopping(signal.SIGTERM, 4))
    run(dataclasses.replace(config, out=out, mesh=MeshConfig(data=2, fsdp=2, context=1, tensor=2), micro_batch=1))
    ours, theirs = np.array(metrics(out)), np.array(undisturbed[0])
    np.testing.assert_allclose(ours[:, 1], theirs[:, 1], rtol=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run(config, world):
    out = str(world / "infinite")
    wild = dataclasses.replace(
        config, out=out, optimizer=OptimizerConfig(learning_rate=1e30, warmup_steps=9, clip=None)
    )
    with pytest.raises(FloatingPointError, match=r"step \d+: loss is .*; nothing of it is saved") as error:
        run(wild)
    assert "Rows of the step: rows" in str(error.value) and "there is no checkpoint yet" in str(error.value)
    assert store.saved(pathlib.Path(out) / "checkpoints") == []


def test_the_best_by_validation_is_exported(config, world):
    out = world / "best"
    wild = OptimizerConfig(learning_rate=0.3, warmup_steps=1, final=1.0)
    best = dataclasses.replace(
        config, out=str(out), optimizer=wild, steps=6, save=SaveConfig(every=1, keep=1, export="best", dtype="float32")
    )
    run(best)
    losses = [json.loads(row)["loss"] for row in (out / "validation.jsonl").read_text().splitlines()]
    assert min(losses) < losses[-1], "the last step is the best, so the export shows nothing"
    by_loss = {checkpoint.loss: checkpoint for checkpoint in store.saved(out / "checkpoints")}
    recipe = Recipe(wild, config.loss, 6, "float32", "none")
    shapes = jax.eval_shape(lambda: initial_state(Decoder(SIZES, jax.random.key(0)), recipe))
    device = SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
    kept = named(store.restore(by_loss[min(losses)], abstract).model)
    for name, x in tensors(out).items():
        np.testing.assert_array_equal(x, kept[name], err_msg=name)


# ---- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": ""}, "random weights has no tokenizer; set tokenizer=DIR"),
        ({"chat_template": "/nowhere.jinja"}, "chat_template=/nowhere.jinja does not exist"),
        ({"remat": "some"}, "remat='some' is not known; use one of none, full"),
        ({"global_batch": 0}, "global_batch=0; it must be at least 1"),
        ({"steps": 0}, "steps=0; it must be at least 1"),
        ({"model": RandomModel(dataclasses.replace(SIZES, V=100))}, "the model has 100 ids, its tokenizer 28"),
        ({"model": RandomModel(dataclasses.replace(SIZES, family="gpt"))}, "model.init.family='gpt' is not known"),
        ({"model": RandomModel(dataclasses.replace(SIZES, max_position=20))}, "the model is made for 20 positions"),
        ({"data": DataConfig(rows="x", preset="s2")}, "data.preset='s2' is not known; use one of s1"),
        ({"save": SaveConfig(every=0)}, "save.every=0; it must be at least 1"),
        ({"log": LogConfig(every=0)}, "log.every=0; it must be at least 1"),
        ({"log": LogConfig(wandb="mine")}, "log.wandb='mine', but wandb is not installed"),
        ({"eval_rows": (), "save": SaveConfig(export="best")}, "save.export=best needs eval_rows"),
    ],
)
def test_what_is_refused(change, message, config, world, monkeypatch):
    with pytest.raises(BadInput, match=message):
        run(dataclasses.replace(config, out=str(world / "refused"), **change))


def test_the_progress_line():
    record = {"step": 12, "loss": 1.23456, "tokens_per_second": 8123.4, "mfu": 0.431, "seconds_left": 200.4}
    assert line(record, 315) == "step 12/315  loss 1.2346  8,123 tokens/s  MFU 43.1%  3:20 left"
    assert line({"step": 1, "loss": 2.0, "mfu": None}, 3) == "step 1/3  loss 2.0000"
