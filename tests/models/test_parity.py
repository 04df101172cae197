"""Every family, tie and head ratio against transformers with random weights."""

import parity
import parity_scale
import pytest

from s1jax.models.decoder import DecoderConfig

LOGITS, GRADIENT, BFLOAT16 = 1e-4, 1e-4, 1.25


@pytest.fixture(scope="module")
def cases(config_files):
    """Name -> (reduced config, transformers' model, ours)."""
    found = {}
    for case in parity.cases(config_files):
        other = parity.peer(case.hf)
        found[case.name] = (case.hf, other, parity.ours(other))
    return found


def test_the_cases_cover_what_ships(cases):
    configs: list[DecoderConfig] = [model.config for _, _, model in cases.values()]
    assert {config.G for config in configs} == set(range(1, 9))
    assert {(config.family, config.tied) for config in configs} == {
        (family, tied) for family in ("qwen2", "qwen3", "llama") for tied in (True, False)
    }
    assert any(config.K * config.G * config.H != config.D for config in configs)
    assert any(config.rope_scaling for config in configs)


def test_logits_of_whole_padded_packed_and_far_rows(cases):
    for name, (_, other, model) in cases.items():
        errors = parity.error_by_row(model, other)
        assert max(errors.values()) < LOGITS, (name, errors)


def test_cached_logits_and_greedy_ids(cases):
    for name, (_, other, model) in cases.items():
        error, is_equal = parity.cached(model, other)
        assert error < LOGITS and is_equal, (name, error, is_equal)


def test_gradients_of_the_fine_tuning_loss(cases):
    seen = set()
    for name, (_, other, model) in cases.items():
        kind = (model.config.family, model.config.tied)
        if kind not in seen:
            seen.add(kind)
            errors = parity.gradient_errors(model, other)
            assert max(errors.values()) < GRADIENT, (name, max(errors.items(), key=lambda item: item[1]))


@pytest.mark.parametrize("name", ["qwen2.5-7b-instruct", "qwen3-8b", "llama-3.1-8b"])
def test_bfloat16_is_no_worse_than_the_peer(cases, name):
    ratio, count = parity_scale.bfloat16_ratio(cases[name][0])
    assert count >= 1e5
    assert ratio < BFLOAT16


@pytest.mark.parametrize("name", ["qwen2.5-7b-instruct", "llama-3.2-3b-instruct"])
def test_cached_logits_at_32768(config_files, name):
    """At the real head width: the frequencies' last bits show only there."""
    real = parity.real_configs(config_files)[name]
    assert parity_scale.far_cached_error({**parity.reduced(real), "head_dim": 128}) < LOGITS


def test_one_layer_at_true_width(config_files):
    """Every shipped width up to 14B, whose layer holds 1.1 GB in fp32."""
    real = parity.real_configs(config_files)
    fitting = {name: hf for name, hf in real.items() if hf["hidden_size"] * hf["intermediate_size"] <= 5120 * 13824}
    assert len(fitting) == 11
    numbers = parity_scale.noise(280_000_000)
    for name, hf in fitting.items():
        assert parity_scale.wide_error(hf, numbers) < LOGITS, name
