"""Times of the train step for a few layers of a real shape; one JSON line.

    python tools/bench_train.py --shape 0.5b --layers 4 --rows 2 --length 512 --remat none --peers transformers,tunix
    python tools/bench_train.py --shape 32b --layers 4 --rows 1 --length 32768 --dtype bfloat16 --attention cudnn

Gives tokens/s, MFU against the largest product's rate that was measured in the same run (`peak_flops`), and against the
vendor's figure where it is known (`mfu_of_data_sheet`). The rows are full, `--examples` a row; operations are counted
by `flops.train_flops`, so recomputation does not count and the masked half of attention is left out.

Peers run in processes of their own, in turns with ours, on the same shapes: `transformers` in this environment, `tunix`
in that of `--tunix` (a Python that has google-tunix). On a machine that does other work only ratios mean something.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import bench_train_peers
import jax
import jax.numpy as jnp
import numpy as np

from s1jax.models import attention
from s1jax.models.decoder import Decoder, DecoderConfig
from s1jax.parallel.mesh import MeshConfig, make_mesh
from s1jax.text.render import Row
from s1jax.train.flops import peak_flops, train_flops
from s1jax.train.loss import LossConfig
from s1jax.train.optimizer import OptimizerConfig
from s1jax.train.packing import fill, loss_weights
from s1jax.train.step import Recipe, batch_sharding, initial_state, make_step, place_batch, state_shardings

QWEN = {"family": "qwen2", "H": 128, "rope_theta": 1e6, "max_position": 32768, "qkv_bias": True}
SHAPES = {
    "tiny": DecoderConfig(**{**QWEN, "H": 16}, D=64, K=2, G=2, F=128, V=512, L=2, tied=True),
    "0.5b": DecoderConfig(**{**QWEN, "H": 64}, D=896, K=2, G=7, F=4864, V=151936, L=24, tied=True),
    "1.5b": DecoderConfig(**QWEN, D=1536, K=2, G=6, F=8960, V=151936, L=28, tied=True),
    "7b": DecoderConfig(**QWEN, D=3584, K=4, G=7, F=18944, V=152064, L=28),
    "32b": DecoderConfig(**QWEN, D=5120, K=8, G=5, F=27648, V=152064, L=64),
}
PEERS = str(pathlib.Path(bench_train_peers.__file__))


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="0.5b")
    parser.add_argument("--layers", type=int, help="of the shape's; all by default")
    parser.add_argument("--vocabulary", type=int, help="cut to so many ids")
    parser.add_argument("--rows", type=int, default=1, help="rows of an update")
    parser.add_argument("--length", type=int, default=512, help="ids of a row")
    parser.add_argument("--examples", type=int, default=1, help="examples of equal length packed into a row")
    parser.add_argument("--micro-batches", type=int, default=1)
    parser.add_argument("--remat", default="none")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--chunk", type=int, default=1024, help="positions whose logits exist at once; 0 for all")
    parser.add_argument("--moments", default="float32")
    parser.add_argument("--offload-optimizer", action="store_true")
    parser.add_argument("--mesh", default="", help="such as data=1,fsdp=4,context=2; one device by default")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each, in turns")
    parser.add_argument("--steps", type=int, default=2, help="updates of a round")
    parser.add_argument("--peers", default="", help="transformers,tunix")
    parser.add_argument("--tunix", default=sys.executable, help="a Python that has google-tunix")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def model_of(options: argparse.Namespace) -> DecoderConfig:
    """The shape, cut as asked."""
    shape = SHAPES[options.shape]
    return dataclasses.replace(shape, L=options.layers or shape.L, V=options.vocabulary or shape.V)


def our_updates(options: argparse.Namespace) -> tuple[dict[str, Any], Callable[[int], float]]:
    """The step of `s1jax train`, with its state on the device and one batch used again and again."""
    config = model_of(options)
    sizes = {key: int(value) for key, _, value in (item.partition("=") for item in options.mesh.split(",") if item)}
    mesh_config = MeshConfig(**{"data": 1, "fsdp": 1, **sizes})
    mesh = make_mesh(mesh_config, None if options.mesh else jax.devices()[:1])
    is_packed = options.examples > 1
    length = options.length // options.examples
    backend = attention.choose(options.attention, config, mesh, dtype=options.dtype, is_packed=is_packed)
    recipe = Recipe(
        OptimizerConfig(mu=options.moments, nu=options.moments),
        LossConfig(chunk=options.chunk),
        steps=1000,
        dtype=options.dtype,
        remat=options.remat,
        attention=backend,
        max_segments=options.examples,
        max_segment_length=length,
        offload_optimizer=options.offload_optimizer,
    )
    shapes = jax.eval_shape(lambda: initial_state(Decoder(config, jax.random.key(0)), recipe))
    shardings = state_shardings(shapes, mesh, recipe)
    draw = jax.jit(lambda key: initial_state(Decoder(config, key), recipe), out_shardings=shardings)
    held = [draw(jax.random.key(0))]
    step = make_step(recipe, mesh, shardings)
    rng = np.random.default_rng(0)
    count = options.rows * options.examples
    rows = [Row(str(i), tuple(rng.integers(0, config.V, length + 1).tolist()), 1) for i in range(count)]
    dealt = [list(range(i, count, options.rows)) for i in range(options.rows)]
    arrays = fill(rows, dealt, options.length, loss_weights(rows, "example"))
    batch = place_batch(arrays, options.micro_batches, batch_sharding(mesh))

    def updates(count: int) -> float:
        metrics = None
        for _ in range(count):
            held[0], metrics = step(held[0], batch)
        assert metrics is not None
        return float(metrics.loss)

    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    versions = {"jax": jax.__version__, "device": device.device_kind, "attention": backend}
    versions |= {"data_sheet": peak_flops(mesh.devices.flat), "memory": stats.get("bytes_limit")}
    return versions | {"product": product_rate(options.dtype) * mesh.size}, updates


def product_rate(dtype: str) -> float:
    """Operations per second of the best of some square products on one device."""
    size = 2048 if jax.devices()[0].platform == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    product = jax.jit(lambda a, b: a @ b)
    product(a, a).block_until_ready()
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        product(a, a).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


class Worker:
    """A process that makes updates when told to."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.first = self._answer()

    def updates(self, count: int) -> dict[str, float]:
        """Seconds of `count` updates, and the last loss."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End it."""
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a process ended with exit code {self._process.wait()}; what it said stands above")
        return json.loads(line)


def commands(options: argparse.Namespace, argv: Sequence[str]) -> dict[str, list[str]]:
    """How each of the compared is started."""
    shape = dataclasses.asdict(model_of(options))
    job = {key: shape[key] for key in ("D", "K", "G", "H", "F", "V", "L", "tied")}
    text = json.dumps({**job, **{key: getattr(options, key) for key in ("rows", "length", "dtype", "remat")}})
    python = {"transformers": sys.executable, "tunix": options.tunix}
    ours = {"s1jax": [sys.executable, __file__, "--worker", "s1jax", *argv]}
    return ours | {peer: [python[peer], PEERS, peer, text] for peer in options.peers.split(",") if peer}


def compare(options: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Run all of them in turns and sum up."""
    workers = {name: Worker(command) for name, command in commands(options, argv).items()}
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(options.rounds):
        for name, worker in workers.items():
            seconds[name].append(worker.updates(options.steps)["seconds"] / options.steps)
    ours = workers["s1jax"].first["versions"]
    lengths = [options.length // options.examples] * (options.rows * options.examples)
    flops, tokens = train_flops(model_of(options), lengths), options.rows * options.length
    result: dict[str, Any] = {"bench": "train step", "peak_flops": ours["product"], "flops_per_step": flops}
    for name, worker in workers.items():
        worker.close()
        step = statistics.median(seconds[name])
        result[name] = {
            "seconds": step,
            "spread": [min(seconds[name]), max(seconds[name])],
            "tokens_per_second": tokens / step,
            "mfu": flops / step / ours["product"],
            "mfu_of_data_sheet": None if ours["data_sheet"] is None else flops / step / ours["data_sheet"],
            "first_seconds": worker.first["first_seconds"],
            "first_loss": worker.first["loss"],
            "versions": worker.first["versions"],
        }
    shown = {key: value for key, value in vars(options).items() if key not in ("worker", "tunix")}
    return result | {"options": shown}


def main(argv: Sequence[str]) -> None:
    """Compare, or be one of the compared."""
    options = arguments(argv)
    if options.worker:
        bench_train_peers.serve(lambda: our_updates(options))
    else:
        print(json.dumps(compare(options, argv)))


if __name__ == "__main__":
    main(sys.argv[1:])
