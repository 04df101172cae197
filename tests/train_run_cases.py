"""What the tests of whole runs share: a small world of data, and a run in it."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import tokenizers
import yaml

from s1jax.config import to_dict
from s1jax.models.decoder import DecoderConfig
from s1jax.parallel.mesh import MeshConfig
from s1jax.train.data import DataConfig
from s1jax.train.log import LogConfig
from s1jax.train.loss import LossConfig
from s1jax.train.optimizer import OptimizerConfig
from s1jax.train.packing import PackingConfig
from s1jax.train.run import RandomModel, SaveConfig, TrainRun

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = DecoderConfig("qwen2", D=32, K=2, G=2, H=8, F=48, V=280, L=2, rope_theta=1e4, tied=True, qkv_bias=True)
RUN_STEPS = 24
EXACT = ("step", "loss", "grad_norm", "learning_rate", "tokens")


def make_world(folder: pathlib.Path) -> pathlib.Path:
    """A folder with a tokenizer, training rows and held-out rows."""
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


def run_config(world: pathlib.Path) -> TrainRun:
    """A run of `RUN_STEPS` small steps on all eight devices."""
    return TrainRun(
        model=RandomModel(SIZES),
        data=DataConfig(rows=str(world / "rows.jsonl"), block=128),
        tokenizer=str(world / "tokenizer"),
        eval_rows=str(world / "held_out.jsonl"),
        steps=RUN_STEPS,
        global_batch=8,
        micro_batch=2,
        packing=PackingConfig(rows=4, shapes=1, multiple=32),
        loss=LossConfig(chunk=0),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        dtype="float32",
        remat="none",
        mesh=MeshConfig(data=1, fsdp=2, context=2, tensor=2),
        save=SaveConfig(every=7, keep=2, dtype="float32"),
        log=LogConfig(every=100, tensorboard=False),
        out=str(world / "undisturbed"),
    )


def metrics(out):
    """What a run must repeat bit for bit, a tuple a step; no step is missing or double."""
    rows = [json.loads(row) for row in (pathlib.Path(out) / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [tuple(row[key] for key in EXACT) for row in rows]


def stopping(signal_number, step):
    """A progress callback that sends this process a signal at a step."""

    def progress(record):
        if record["step"] == step:
            os.kill(os.getpid(), signal_number)

    return progress


def start(config, world, environment=None):
    """The run as the user starts it, in a process of its own."""
    path = world / f"{pathlib.Path(config.out).name}.yaml"
    path.write_text(yaml.safe_dump(to_dict(config)))
    command = [sys.executable, "-m", "s1jax", "train", str(path)]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(world / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.Popen(
        command, env={**os.environ, **cache, **(environment or {})}, stderr=subprocess.PIPE, text=True
    )


def wait_until(process, is_reached, seconds=300.0):
    """Poll until a condition holds; False when the process ended before."""
    end = time.monotonic() + seconds
    while not is_reached():
        if process.poll() is not None:
            return False
        assert time.monotonic() < end, "the process neither ended nor came as far as it should"
        time.sleep(0.002)
    return True


def steps_written(out):
    """Lines of metrics.jsonl."""
    path = pathlib.Path(out) / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def unfinished_saves(out):
    """Folders of checkpoints that have no manifest yet, by name and inode (one left by a kill is written anew)."""
    found = set()
    for folder in (pathlib.Path(out) / "checkpoints").glob("[0-9]*[0-9]"):
        with contextlib.suppress(FileNotFoundError):  # moved aside meanwhile
            if not (folder / "manifest.json").exists():
                found.add((folder.name, folder.stat().st_ino))
    return found
