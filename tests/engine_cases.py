"""A tiny model and tokenizer for the tests of the engine; plain generation by full forward passes and the oracle."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from oracle_budget import OracleResult, OracleRow, simulate

from s1jax.control import CONTROLS as REGISTRY
from s1jax.control import automata
from s1jax.control.budget.automaton import BudgetForcing, build
from s1jax.control.budget.config import BudgetConfig
from s1jax.control.budget.settings import RepetitionDetection
from s1jax.control.free import FreeConfig
from s1jax.engine import sampling
from s1jax.engine.config import EngineConfig
from s1jax.engine.engine import Engine
from s1jax.engine.requests import Request
from s1jax.engine.sampling import SamplingConfig
from s1jax.models import layers
from s1jax.models.decoder import Decoder, DecoderConfig, abstract, forward, logits, named
from s1jax.records import Completion
from s1jax.text.tokens import byte_tokenizer

MAX_LENGTH = 96
SEED = 3
CLASSES = ((3, 24), (2, 48), (2, 96))
CONFIG = DecoderConfig("qwen2", D=32, K=2, G=2, H=8, F=48, V=264, L=2, max_position=128, tied=True, qkv_bias=True)
FREE = FreeConfig()
# Delimiters of one id and of several, made of the letters that the model prefers: half of one is often drawn.
LETTERS = "abcd"
S1 = BudgetConfig(
    thinking_start="<|im_start|>t",
    thinking_end=("<|im_start|>", "ab", "bcda", "dd"),
    answer_start="<|im_start|>x",
    forced_end="<|im_start|>x:",
    thinking_n_ignore_str="Wait",
)
CONTROLS = (FREE, S1, dataclasses.replace(S1, repetition_detection=RepetitionDetection(3, 3)))

tokenizer = functools.cache(byte_tokenizer)


@functools.cache
def make_model(config: DecoderConfig) -> Decoder:
    """Random weights, scaled so that the likely ids change from position to position, some letters among them."""
    ids = np.array([*tokenizer().encode(LETTERS), *tokenizer().encode_markup("<|im_start|><|im_end|>")])
    scale_V = np.full(config.V, 2.0, np.float32)
    scale_V[ids] = [5.0] * len(LETTERS) + [3.0, 2.5]
    noise = np.random.default_rng(SEED)
    fan_in = {"embed": config.D, "blocks.o": 2 * config.L * config.D, "blocks.down": 2 * config.L * config.F}

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if "norm" in name or "bias" in name:
            return np.full(shape, 2.0 * ("norm" in name), np.float32)
        values = noise.standard_normal(shape, np.float32) / np.sqrt(fan_in.get(name, config.D))
        return (values * (scale_V[:, None] if name == "embed" else 2)).astype(np.float32)

    empty = abstract(config)
    leaves = [draw(name, shape.shape) for name, shape in named(empty).items()]
    return jax.tree.unflatten(jax.tree.structure(empty), leaves)


def model() -> Decoder:
    """The model of most tests."""
    return make_model(CONFIG)


@functools.cache
def control() -> BudgetForcing:
    """One automaton for all rows of the tests."""
    return build(tokenizer(), CONFIG.V, CONTROLS)


def kinds() -> dict[str, BudgetForcing]:
    """The automaton of each kind of these rows."""
    return {"free": control(), "budget": control()}


def engine(**fields) -> Engine:
    """An engine of three length classes; `fields` replace those of its config."""
    own = {key: fields.pop(key) for key in ("dtype", "mesh", "notify") if key in fields}
    config = EngineConfig(**{"classes": CLASSES, "max_length": MAX_LENGTH, "window": 8, **fields})
    return Engine(model(), tokenizer(), config, kinds(), **own)


def budget(**fields) -> BudgetConfig:
    """The budget control of the tests with other fields."""
    return dataclasses.replace(S1, **fields)


def paused(engine_: Engine, row: Request) -> int:
    """Submit a row that pauses and run until it does; its ticket."""
    tickets = []
    engine_.submit(row)
    engine_.run(on_pause=tickets.append)
    [ticket] = tickets
    return ticket


def ended(engine_: Engine, ticket: int) -> Completion:
    """Resume and end a row; its completion."""
    engine_.resume(ticket)
    [done] = engine_.run()
    return done


def engine_of(model_: Decoder, asked: Sequence[Any], **fields) -> Engine:
    """An engine of one length class for these controls."""
    return Engine(model_, tokenizer(), EngineConfig(**fields), automata(tokenizer(), CONFIG.V, asked))


def request(
    text: str, config: Any = FREE, *, n: int = 30, id: str = "", sample: int = 0, seed: int = 7, **fields
) -> Request:
    """A request for `n` ids after a prompt of one id a byte; `fields` are those of its sampling."""
    entry = REGISTRY[config.kind]
    ids = (*tokenizer().encode(text), *entry.header(config, tokenizer()))
    row = entry.admit(config, tokenizer(), prompt_length=len(ids), max_length=MAX_LENGTH, max_new_tokens=n)
    return Request(id or text, sample, seed, ids, row, SamplingConfig(**fields))


@jax.jit
def _all_logits(model: Decoder, tokens_BT: jax.Array) -> jax.Array:
    at_T = jnp.arange(tokens_BT.shape[1])

    def attend(q_BTKGH, k_BTKH, v_BTKH, _):
        return layers.attention(q_BTKGH, k_BTKH, v_BTKH, (at_T[None] <= at_T[:, None])[None]), None

    return logits(model, forward(model, tokens_BT, at_T[None], attend)[0])


def next_logits(ids: Sequence[int]) -> np.ndarray:
    """Float32 logits after `ids`, by a full forward pass of the stacked model."""
    tokens_BT = np.zeros((1, MAX_LENGTH), np.int32)
    tokens_BT[0, : len(ids)] = ids
    return np.asarray(_all_logits(model(), tokens_BT)[0, len(ids) - 1])


def plain_scores(
    logits_V: np.ndarray, forbidden: Sequence[int], config: SamplingConfig, key: np.ndarray, position: int
) -> np.ndarray:
    """What the drawn id has most of, in plain NumPy: logits, sorted and cut, plus Gumbel noise."""
    scaled_V = logits_V.astype(np.float32).copy()
    scaled_V[list(forbidden)] = -np.inf
    if config.temperature == 0:
        return scaled_V
    scaled_V = scaled_V / np.float32(config.temperature)
    order_V = np.argsort(-scaled_V, kind="stable")
    if config.top_k:
        scaled_V[scaled_V < scaled_V[order_V[min(config.top_k, len(order_V)) - 1]]] = -np.inf
    weight_V = np.exp(scaled_V - scaled_V.max())
    if config.top_p < 1:
        before_V = np.cumsum(weight_V[order_V]) - weight_V[order_V]
        last = order_V[np.flatnonzero(before_V < config.top_p * weight_V.sum())[-1]]
        scaled_V[scaled_V < scaled_V[last]] = -np.inf
    scaled_V[weight_V < config.min_p] = -np.inf
    folded = jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(key)), position)
    return scaled_V + np.asarray(jax.random.gumbel(folded, scaled_V.shape, jnp.float32))


def near_tie(request: Request, kept: Sequence[int]) -> float:
    """How much more the drawn id has than the next, after `kept`."""
    key = sampling.row_key(request.seed, request.id, request.sample)
    ids = (*request.prompt_ids, *kept)
    scores_V = np.sort(
        plain_scores(next_logits(ids), range(tokenizer().size, CONFIG.V), request.sampling, key, len(ids))
    )
    return float(scores_V[-1] - scores_V[-2])


def plain(request: Request) -> OracleResult:
    """The request by the oracle of the rules, each draw from a full forward pass over all ids so far."""
    key = sampling.row_key(request.seed, request.id, request.sample)
    absent = set(range(tokenizer().size, CONFIG.V))

    def draw(kept: tuple[int, ...], forbidden: frozenset[int]) -> int:
        ids = (*request.prompt_ids, *kept)
        return int(plain_scores(next_logits(ids), [*forbidden, *absent], request.sampling, key, len(ids)).argmax())

    return simulate(_oracle_row(request), draw)


def _oracle_row(request: Request) -> OracleRow:
    row, pattern = request.control, request.control.repetition
    return OracleRow(
        prompt_length=len(request.prompt_ids),
        max_length=len(request.prompt_ids) + row.room,
        max_new_tokens=row.room,
        token_bytes=tuple(tokenizer().token_bytes()),
        eos_ids=tokenizer().eos_ids,
        delimiters=row.delimiters,
        delimiter_first_ids=tuple(tokenizer().encode_markup(text.decode())[0] for text in row.delimiters),
        kept_delimiter=row.is_kept,
        answer_start=row.answer_start,
        forced_end=row.forced_end,
        newline=row.newline,
        thinking=row.is_thinking,
        budget=row.budget if row.has_budget else None,
        minimum=row.minimum,
        n_ignore=row.n_ignore,
        strings=row.strings,
        answer_budget=row.answer_budget,
        repetition=pattern and (pattern.max_pattern_size, pattern.min_pattern_size, pattern.min_count),
        loop_action=row.loop_action,
        mode=row.algorithm,
    )


def facts(result: Completion | OracleResult) -> tuple:
    """What a completion and the oracle both say."""
    names = [field.name for field in dataclasses.fields(OracleResult)]
    return tuple(getattr(result, name) for name in names)
