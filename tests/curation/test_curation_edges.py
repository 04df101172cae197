"""The draw at its edges: ties, floors and what is left when domains run out, from the rule alone."""

import collections
import random

import pytest
from curation_cases import AIME, GPQA, candidate, quiet

from curation import diversity
from curation.diversity import (
    NO_DOMAIN,
    DiversityConfig,
    _pools,
    _weighted,
    draw_rank,
    preselected,
    select,
    tail_weights,
)
from curation.stage import Tools


@pytest.fixture
def tools(tmp_path) -> Tools:
    return Tools(seed=3, folder=tmp_path, progress=quiet)


def test_traces_of_one_length_stand_by_their_ids():
    """Whatever the order of the pool: a draw must not depend on it."""
    rows = [candidate(f"q{i}", domain="d", thinking_length=length) for i, length in enumerate([5, 7, 5, None, 7, 5, 0])]
    expected = [row.id for row in sorted(rows, key=lambda row: (-(row.thinking_length or 0), row.id))]
    for seed in range(5):
        shuffled = random.Random(seed).sample(rows, len(rows))
        assert _pools(shuffled, set(), DiversityConfig()) == {"d": expected}
    lengths = {row.id: row.thinking_length or 0 for row in rows}
    assert [lengths[id] for id in expected] == [7, 7, 5, 5, 5, 0, 0]


def test_rows_without_a_domain_are_a_domain():
    rows = [candidate("a", domain=None), candidate("b", domain=""), candidate("c", domain="d")]
    pools = _pools(rows, {rows[2].id}, DiversityConfig())
    assert list(pools) == [NO_DOMAIN] and set(pools[NO_DOMAIN]) == {rows[0].id, rows[1].id}
    assert set(_pools(rows, {rows[2].id}, DiversityConfig(noop_draws=True))) == {NO_DOMAIN, "d"}


def test_weights_of_the_tail_are_rounded_down():
    """Scale 0.5 * 10 / 4 = 1.25: three of a domain count 3.75, so 3; one counts 1.25, so 1."""
    rows = [candidate(f"a{i}", source=AIME, domain="number") for i in range(10)]
    rows += [candidate(f"g{i}", source=GPQA, domain="physics") for i in range(3)]
    rows += [candidate("h", source=GPQA, domain="number")]
    assert tail_weights(rows, DiversityConfig()) == [("number", 11), ("physics", 3)]
    assert tail_weights(rows[10:], DiversityConfig()) == []
    assert tail_weights(rows[:10], DiversityConfig()) == [("number", 10)]


def test_a_domain_is_drawn_by_its_weight():
    class Given:
        def __init__(self, value):
            self.value = value

        def random(self):
            return self.value

    weights = [("a", 1), ("b", 3), ("c", 4)]
    found = [_weighted(weights, Given(value)) for value in (0.0, 0.124, 0.125, 0.499, 0.5, 0.999, 1.0)]  # type: ignore[arg-type]
    assert found == ["a", "a", "b", "b", "c", "c", "c"]


def test_ranks_at_the_borders_of_their_shares():
    """Of three: 4/7, 2/7, 1/7."""
    for u, rank in (
        (0.0, 0),
        (4 / 7 - 1e-9, 0),
        (4 / 7 + 1e-9, 1),
        (6 / 7 - 1e-9, 1),
        (6 / 7 + 1e-9, 2),
        (1 - 1e-12, 2),
    ):
        assert draw_rank(u, 3) == rank, u
    assert draw_rank(0.999999, 1) == 0


def test_a_tail_without_domains_left_ends_the_draw(tools):
    rows = [candidate(f"a{i}", source=AIME, domain="number", thinking_length=i) for i in range(4)]
    rows += [candidate(f"o{i}", source="other", domain="poetry", thinking_length=i) for i in range(20)]
    config = DiversityConfig(total=12, uniform=0, tail="benchmark", preselect=False)
    kept = select(rows, config, tools).kept
    assert collections.Counter(row.question.domain for row in kept) == {"number": 4}, "poetry has no weight"
    dropped = select(rows, config, tools).dropped
    assert len(dropped) == 20 and {drop.rule for drop in dropped} == {"not drawn"}


def test_as_many_as_asked_for_and_no_more(tools):
    rows = [candidate(f"q{i}", domain="ab"[i % 2], thinking_length=i) for i in range(30)]
    for total in (1, 2, 29, 30, 31):
        config = DiversityConfig(total=total, uniform=5, preselect=False)
        assert len(select(rows, config, tools).kept) == min(total, 30)
    config = DiversityConfig(total=3, uniform=0, preselect=False)
    assert len(select(rows, config, tools).kept) == 3


def test_preselected_rows_count(tools):
    sure = [candidate(f"s{i}", source=AIME, correct=True, thinking_length=9) for i in range(5)]
    rest = [candidate(f"r{i}", source="other", domain="d", thinking_length=i) for i in range(20)]
    config = DiversityConfig(total=8, uniform=8)
    kept = {row.id for row in select([*rest, *sure], config, tools).kept}
    assert len(kept) == 8 and {row.id for row in sure} <= kept
    assert preselected(sure, config) == {row.id for row in sure}
    few = select([*rest, *sure], DiversityConfig(total=3, uniform=3), tools).kept
    assert {row.id for row in few} == {row.id for row in sure}, "what is preselected stays, whatever is asked for"
    unsure = [candidate("u", source="x/openaimath/y", correct=True, thinking_length=None)]
    assert preselected(unsure, config) == set()
    assert diversity.STAGE.select is select
