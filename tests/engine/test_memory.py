"""What an engine plans to hold: rows that never move need no room to move."""

import pytest

from s1jax.config import BadInput
from s1jax.engine.cache import Size
from s1jax.engine.config import EngineConfig
from s1jax.engine.memory import GIB, fit
from s1jax.models.decoder import DecoderConfig

QWEN = {"family": "qwen2", "H": 128, "rope_theta": 1e6, "max_position": 32768, "qkv_bias": True}
LARGE = DecoderConfig(**QWEN, D=5120, K=8, G=5, F=27648, V=152064, L=64)
SIZE = Size(64, 8, 128, "bfloat16")
WEIGHTS = 2 * 32_763_876_352
ONE_ROW = 32768 * 2 * 64 * 8 * 128 * 2  # positions, keys and values, layers, heads, width, bytes


def planned(limit_gib: float, **fields):
    config = EngineConfig(**fields)
    return fit(config, LARGE, SIZE, weights=WEIGHTS, ways=1, limit=int(limit_gib * GIB), most=256, prefill_ids=2048)


def test_a_row_of_the_32b_model_in_bfloat16_fits_one_h100():
    """80e9 bytes: 61 GiB of weights and rows of 8,192, which need no room to move, since none moves."""
    found = planned(80e9 / GIB, max_length=8192)
    assert found.classes == ((1, 8192),) and found.cache == ONE_ROW // 4 == 2 * GIB


def test_copies_are_counted_where_rows_are_copied():
    """By hand: two copies of a longest row where rows move up a class, one where they only fork, none for one row."""
    work = {n: planned(400, slots=n).work for n in (1, 2)}
    several = planned(4000, classes=((2, 1024), (1, 32768)), max_length=32768)
    logits = 3 * 4 * 256 * LARGE.V  # rows of logits are at least a chunk, so these three have as many
    assert work[2] - work[1] == ONE_ROW and several.work - work[1] == 2 * ONE_ROW and work[1] > logits


def test_what_does_not_fit_is_refused_with_where_the_memory_goes():
    with pytest.raises(BadInput, match="engine.slots=auto: not one slot fits .*weights 61"):
        planned(62)
    with pytest.raises(BadInput, match="the slots asked for do not fit: weights 61 .* lower engine.slots"):
        planned(79.6, slots=8)
