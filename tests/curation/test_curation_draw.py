"""The draw of the final rows, against the distribution and the constants of upstream."""

import collections
import dataclasses
import random

import pytest
from curation_cases import AIME, GPQA, MATH, candidate, candidates, quiet

from curation.diversity import DiversityConfig, draw_rank, preselected, tail_weights
from curation.diversity import select as draw
from curation.stage import Tools
from s1jax.config import BadInput


@pytest.fixture
def tools(tmp_path) -> Tools:
    return Tools(seed=3, folder=tmp_path, progress=quiet)


def test_draw_has_upstreams_distribution():
    """P(rank) = 2^-rank, normalised (data/filter.ipynb, cell 21), by integrating over u."""
    for n in (1, 2, 5, 12):
        steps = 1 << 16
        counts = collections.Counter(draw_rank(i / steps, n) for i in range(steps))
        weights = [2.0**-rank for rank in range(n)]
        for rank in range(n):
            assert counts[rank] / steps == pytest.approx(weights[rank] / sum(weights), abs=2 / steps)
    assert draw_rank(0.0, 5000) == 0 and 50 <= draw_rank(1 - 2**-53, 5000) <= 53
    assert [draw_rank(1 - 2**-53, n) for n in (1, 2, 3)] == [0, 1, 2], "the largest u is rounded to one too far"


def test_preselection_is_upstreams():
    rows = [
        candidate("a", source=AIME, correct=True, thinking_length=1),
        candidate("b", source=GPQA, correct=True, thinking_length=1),
        candidate("c", source=MATH, correct=True, thinking_length=5601),
        candidate("d", source=MATH, correct=True, thinking_length=5600),
        candidate("e", source=AIME, correct=False, thinking_length=9000),
        candidate("f", source=AIME, correct=None, thinking_length=9000),
        candidate("g", source="qfq/openaimath/Geometry", correct=True, thinking_length=5601),
        candidate("i", source=MATH, correct=None, thinking_length=5601),
        candidate("h", source="TIGER-Lab/TheoremQA/bool", correct=True, thinking_length=9000),
    ]
    taken = preselected(rows, DiversityConfig())
    assert {row.question.text for row in rows if row.id in taken} == set("abcg")
    assert not preselected(rows, DiversityConfig(preselect=False))
    assert (DiversityConfig().uniform, DiversityConfig().total, DiversityConfig().long_tokens) == (700, 1000, 5600)


def test_draw_depends_on_seed_and_pool_but_not_on_its_order(tools):
    rows = candidates(300)
    config = DiversityConfig(total=80, uniform=60)
    kept = draw(rows, config, tools).kept
    assert len(kept) == 80
    shuffled = random.Random(1).sample(rows, len(rows))
    assert {c.id for c in draw(shuffled, config, tools).kept} == {c.id for c in kept}
    other = draw(rows, config, dataclasses.replace(tools, seed=4)).kept
    assert {c.id for c in other} != {c.id for c in kept}


def test_draw_takes_domains_evenly_and_long_traces_first(tools):
    rows = [
        candidate(f"{domain} {i}", domain=domain, thinking_length=i)
        for domain, n in (("large", 400), ("small", 100), ("tiny", 5))
        for i in range(n)
    ]
    kept = draw(rows, DiversityConfig(total=120, uniform=120), tools).kept
    by_domain = collections.Counter(c.question.domain for c in kept)
    assert by_domain["tiny"] == 5 and abs(by_domain["large"] - by_domain["small"]) < 40
    lengths = [c.thinking_length or 0 for c in kept if c.question.domain == "large"]
    assert min(lengths) > 400 - 2 * len(lengths)


def test_small_pools_are_kept_whole(tools):
    rows = candidates(20)
    assert draw(rows, DiversityConfig(), tools).kept == tuple(rows)
    assert draw(rows, DiversityConfig(total=None), tools).kept == tuple(rows)
    for config in (DiversityConfig(total=0), DiversityConfig(uniform=-1)):
        with pytest.raises(BadInput, match="must be above 0"):
            draw(rows, config, tools)


def test_benchmark_tail_draws_by_the_domains_of_two_sources(tools):
    """Weights as in the notebook's cell 17: GPQA's counts scaled to half of AIME's, floored, plus AIME's."""
    rows = [
        *(candidate(f"a{i}", source=AIME, domain="number", thinking_length=i) for i in range(40)),
        *(candidate(f"g{i}", source=GPQA, domain="physics", thinking_length=i) for i in range(3)),
        *(candidate(f"g2{i}", source=GPQA, domain="number", thinking_length=i) for i in range(1)),
        *(candidate(f"o{i}", source="other", domain="physics", thinking_length=i) for i in range(60)),
        *(candidate(f"p{i}", source="other", domain="poetry", thinking_length=i) for i in range(60)),
    ]
    config = DiversityConfig(total=80, uniform=0, tail="benchmark")
    assert tail_weights(rows, config) == [("number", 45), ("physics", 15)]
    assert tail_weights([row for row in rows if row.question.source != GPQA], config) == [("number", 40)]
    kept = collections.Counter(c.question.domain for c in draw(rows, config, tools).kept)
    # scale = 0.5 * 40 / 4 = 5: physics 15, number 40 + 5; poetry stands in neither source.
    assert kept["poetry"] == 0 and kept.total() == 80
    assert 10 <= kept["physics"] <= 60 and kept["number"] >= 20
    everything = dataclasses.replace(config, total=500)
    assert collections.Counter(c.question.domain for c in draw(rows, everything, tools).kept)["poetry"] == 0


def test_noop_draws_are_a_switch(tools):
    rows = candidates(200)
    taken = preselected(rows, DiversityConfig())
    for noop in (False, True):
        config = DiversityConfig(total=len(taken) + 20, uniform=700, noop_draws=noop)
        kept = {c.id for c in draw(rows, config, tools).kept}
        assert taken <= kept and len(kept) == len(taken) + 20
