"""The benchmarks of `bench_decode.py` that time single steps, and what all of them share: shapes, models, requests."""

import dataclasses
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from s1jax.control import automata
from s1jax.control.budget.admission import admit
from s1jax.control.budget.config import BudgetConfig
from s1jax.control.budget.settings import BudgetSettings
from s1jax.engine import cache as kv
from s1jax.engine.config import EngineConfig
from s1jax.engine.engine import Engine
from s1jax.engine.protocol import DONE, RUN, Account, Step
from s1jax.engine.requests import Request
from s1jax.engine.sampling import SamplingConfig
from s1jax.models.decoder import Decoder, DecoderConfig, Unstacked, abstract, forward, logits
from s1jax.text.tokens import byte_tokenizer

QWEN = {"family": "qwen2", "H": 128, "rope_theta": 1e6, "max_position": 32768, "qkv_bias": True}
SHAPES = {
    "least": DecoderConfig(**{**QWEN, "H": 8}, D=8, K=1, G=1, F=8, V=264, L=1, tied=True),
    "tiny": DecoderConfig(**{**QWEN, "H": 16}, D=64, K=2, G=2, F=128, V=512, L=2, tied=True),
    "0.5b": DecoderConfig(**{**QWEN, "H": 64}, D=896, K=2, G=7, F=4864, V=151936, L=24, tied=True),
    "32b": DecoderConfig(**QWEN, D=5120, K=8, G=5, F=27648, V=152064, L=64),
}
NO_CONTROL = BudgetSettings(False, True, 0, (), (), (), (), (), b"", b"")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scripted:
    """The least that a control can do: a row ends after `room` ids, whatever they are."""

    absent_V: Any

    def rows(self, settings: Sequence[BudgetSettings]) -> dict[str, np.ndarray]:
        """How many ids each row is to have, and how many it has."""
        return {"room_B": np.array([r.room for r in settings], np.int32), "n_B": np.zeros(len(settings), np.int32)}

    def forbid(self, state_B: dict) -> jax.Array:
        """Ids that no tokenizer has."""
        return jnp.broadcast_to(self.absent_V, (len(state_B["n_B"]), len(self.absent_V)))

    def step(self, state_B: dict, drawn_B: jax.Array) -> tuple[dict, Step]:
        """Keep the draw."""
        n_B = state_B["n_B"] + 1
        no_B = jnp.zeros_like(drawn_B)
        status_B = jnp.where(n_B >= state_B["room_B"], DONE, RUN)
        return {**state_B, "n_B": n_B}, Step(drawn_B, no_B, no_B == 0, no_B == 1, status_B)

    def account(self, state_row: dict, token_ids: Sequence[int], forced: Sequence[bool]) -> Account:
        """All of it is answer."""
        return Account(0, 0, len(token_ids), len(token_ids), None, "length")

    def thinking_tokens(self, state_row: dict, n_tokens: int) -> int:
        """None."""
        return 0

    def extend(self, state_row: dict, token_ids: Sequence[int], n_tokens: int) -> dict:
        """Nothing to change."""
        return state_row

    def refork(self, state_row: dict, settings: BudgetSettings) -> dict:
        """Nothing to change."""
        return state_row


def random_model(config: DecoderConfig) -> Decoder:
    """Normal weights of the usual size."""
    noise = np.random.default_rng(0)

    def fill(x: jax.ShapeDtypeStruct) -> np.ndarray:
        if x.ndim == 1:
            return np.ones(x.shape, np.float32)
        values = noise.standard_normal(x.shape, np.float32)
        values *= np.float32(config.D**-0.5)
        return values

    return jax.tree.map(fill, abstract(config))


def bandwidth() -> float:
    """Bytes a second of the fastest of several reads of one large array."""
    device = jax.devices()[0]
    x = jax.device_put(jnp.ones(2**28 if device.platform != "cpu" else 2**27, jnp.float32), device)
    read = jax.jit(lambda x: jnp.sum(x))
    return x.nbytes / min(timed(lambda: read(x)) for _ in range(6))


def timed(call: Callable[[], Any]) -> float:
    """Seconds until the result is there."""
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def at_context(engine: Engine, requests: Sequence[Request], context: int) -> Callable[[], float]:
    """Rows that stand at `context` ids; the call runs one window from there and returns its seconds a step."""
    for request in requests:
        engine.submit(request)
    engine.call(lambda: engine._loop.scheduler.refill(1))
    table = engine._slots

    def window() -> float:
        state = table._state
        assert state is not None
        length_B = jnp.full_like(state.row.length_B, context)
        table._state = dataclasses.replace(state, row=dataclasses.replace(state.row, length_B=length_B))
        return timed(table.window) / table.shape.window

    window()
    return window


def requests_of(rows: int, control: BudgetSettings, **fields: Any) -> list[Request]:
    """Rows of a short prompt."""
    return [Request(f"{i}", 0, 0, (1, 2, 3), control, SamplingConfig(**fields)) for i in range(rows)]


def engine_of(model: Decoder | Unstacked, control: Any, classes: tuple, options: dict, **fields: Any) -> Engine:
    """An engine of these classes."""
    names = ("dtype", "weights", "cache", "window")
    given = {name: int(options[name]) if name == "window" else options[name] for name in names if name in options}
    dtype = given.pop("dtype", "float32")
    config = EngineConfig(**{"classes": classes, "max_length": classes[-1][1], "window": 16, **given, **fields})
    return Engine(model, byte_tokenizer(), config, control, dtype=dtype)


def scripted(config: DecoderConfig) -> Scripted:
    """The least control for a model."""
    return Scripted(np.arange(config.V) >= byte_tokenizer().size)


def bench_step(options: dict) -> None:
    """Step time over rows and context, its share of the roofline, and what it is made of."""
    config = shape_of(options)
    model = random_model(config)
    for context in numbers(options, "context", "1024"):
        for rows in numbers(options, "rows", "1,8,16,64"):
            window = int(options.get("window", 16))
            engine = engine_of(model, {"free": scripted(config)}, ((rows, context + window),), options)
            control = dataclasses.replace(NO_CONTROL, room=context)
            run = at_context(engine, requests_of(rows, control), context)
            times = sorted(run() for _ in range(int(options.get("repeats", 5))))
            seconds = times[len(times) // 2]
            table = engine._slots
            live = rows * context * table._size.bytes_per_token
            read = bandwidth()
            # An untied embedding is gathered, not read.
            weights = engine.memory.weights - (0 if config.tied else table.model.embed.get_value().nbytes)
            emit(
                "step", options, rows=rows, context=context, step_ms=seconds * 1e3, least_ms=times[0] * 1e3,
                most_ms=times[-1] * 1e3, tokens_per_second=rows / seconds,
                weight_bytes=weights, live_bytes=live, bandwidth=read, roofline_share=(weights + live) / read / seconds,
                parts_ms=parts(engine, context, seconds * 1e3),
            )  # fmt: skip


def parts(engine: Engine, context: int, whole: float) -> dict[str, float]:
    """Milliseconds of a step: products, attention and cache, head, draw and control; differences of nested programs."""
    table = engine._slots
    state, model, dtype = table._state, table.model, jnp.dtype(table.shape.dtype)
    assert state is not None
    B = table.shape.rows
    position_B, active_B = jnp.full(B, context - 1), jnp.ones(B, bool)
    embedded = state.row.tokens_BS[:, :1]

    def run(with_cache: bool, with_head: bool) -> float:
        def attend(q_BTKGH: Any, k_BTKH: Any, v_BTKH: Any, layer: Any) -> Any:
            if not with_cache:
                return q_BTKGH + v_BTKH[:, :, :, None] + k_BTKH[:, :, :, None], layer
            layer = kv.write(layer, k_BTKH[:, 0], v_BTKH[:, 0], position_B, active_B)
            return kv.attend(layer, q_BTKGH[:, 0], position_B)[:, None], layer

        @functools.partial(jax.jit, donate_argnums=1)
        def loop(model: Any, cache: Any) -> Any:
            def body(_: Any, carry: Any) -> Any:
                token_BT, cache = carry
                x_BTD, cache = forward(model, token_BT, position_B[:, None], attend, cache, dtype=dtype)
                scores_BT = logits(model, x_BTD).argmax(-1) if with_head else x_BTD[..., 0]
                return (token_BT + (scores_BT < 0)).astype(jnp.int32), cache

            return jax.lax.fori_loop(0, table.shape.window, body, (embedded, cache))

        cache = jax.tree.map(jnp.copy, state.cache) if with_cache else tuple(None for _ in range(model.config.L))
        seconds = []
        for _ in range(4):
            begin = time.perf_counter()
            _, cache = jax.block_until_ready(loop(model, cache))
            seconds.append(time.perf_counter() - begin)
        return min(seconds[1:]) / table.shape.window * 1e3

    products, cached, headed = run(False, False), run(True, False), run(True, True)
    return {"products": products, "attention": cached - products, "head": headed - cached, "rest": whole - headed}


def bench_budget(options: dict) -> None:
    """A step of thinking rows under budget forcing against one under the least control; pairs, one after the other."""
    config, tokenizer = shape_of(options), byte_tokenizer()
    model, asked = random_model(config), BudgetConfig(thinking_n_ignore=10**6, thinking_end=("<|im_start|>", "</t>"))
    for context in numbers(options, "context", "512"):
        for rows in numbers(options, "rows", "16"):
            window = int(options.get("window", 16))
            classes = ((rows, context + window),)
            row = admit(asked, tokenizer, prompt_length=3, max_length=context, max_new_tokens=context)
            forcing = engine_of(model, automata(tokenizer, config.V, [asked]), classes, options)
            least = engine_of(forcing._slots.model, {"free": scripted(config)}, classes, options)
            with_forcing = at_context(forcing, requests_of(rows, row), context)
            without = at_context(least, requests_of(rows, dataclasses.replace(NO_CONTROL, room=context)), context)
            pairs = [(with_forcing(), without()) for _ in range(int(options.get("repeats", 9)))]
            low, ratio, high = statistics.quantiles((a / b for a, b in pairs), n=4)
            emit(
                "budget", options, rows=rows, context=context, step_ms=min(a for a, _ in pairs) * 1e3,
                free_step_ms=min(b for _, b in pairs) * 1e3, cost_of_forcing=ratio - 1,
                quartiles=[low - 1, high - 1],
            )  # fmt: skip


def numbers(options: dict, name: str, default: str) -> list[int]:
    """A comma-separated option."""
    return [int(part) for part in str(options.get(name, default)).split(",")]


def shape_of(options: dict) -> DecoderConfig:
    """The model's sizes; `layers` replaces their number."""
    config = SHAPES[options.get("shape", "tiny")]
    return dataclasses.replace(config, L=int(options.get("layers", config.L)))


def emit(name: str, options: dict, **figures: Any) -> None:
    """One JSON line."""
    device = jax.devices()[0]
    print(json.dumps({"bench": name, "device": device.device_kind, "load": os.getloadavg()[0], **options, **figures}))
    sys.stdout.flush()


BENCHES = {"step": bench_step, "budget": bench_budget}
