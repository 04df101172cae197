"""Which way a finding points: up where accuracy rises, down where it falls, and nowhere where it does neither."""

import pytest

from s1jax.eval.findings import findings
from s1jax.eval.scaling import Point, to_json

N = 60


def point(tokens: float, right: int, **fields) -> Point:
    """A setting that has `right` of the questions right, those that fewer have among them."""
    accuracy = tuple(float((7 * i) % N < right) for i in range(N))
    spent = (float(tokens),) * N
    return Point(f"{tokens}", fields.pop("budget", int(tokens)), spent, tuple(x + 8 for x in spent), accuracy, **fields)


def said_of(points: list[Point], word: str) -> str:
    """The sentences that hold a word."""
    said = findings(points, to_json(points, benchmark="b", model="m"))
    return " ".join(sentence for sentence in said if word in sentence.lower())


RISING = [point(16, 10), point(64, 30), point(256, 50)]
FALLING = [point(16, 50), point(64, 30), point(256, 10)]
FLAT = [point(16, 30), point(64, 30), point(256, 30)]


def test_the_slope():
    assert to_json(RISING)["scaling"]["value"] > 10 and to_json(FALLING)["scaling"]["value"] < -10
    rising, falling, flat = (said_of(points, "thinking").lower() for points in (RISING, FALLING, FLAT))
    assert "raised" in rising and "lowered" not in rising
    assert ("lowered" in falling or "hurt" in falling) and "raised" not in falling
    assert "raised" not in flat and "lowered" not in flat


@pytest.mark.parametrize(("right", "up"), [(59, True), (2, False)])
def test_a_vote_at_equal_tokens(right, up):
    """The line through the single runs stands at a half where the vote spends its tokens."""
    vote = point(64, right, votes=8)
    said = said_of([*RISING, vote], "vote").lower()
    assert any(word in said for word in ("above", "raised")) is up, said
    assert any(word in said for word in ("below", "lowered")) is not up, said


@pytest.mark.parametrize(("right", "up"), [(50, True), (2, False)])
def test_ignored_ends(right, up):
    points = [point(60, 25, budget=None), point(120, right, budget=None, n_ignore=2)]
    said = said_of(points, "ignor").lower()
    if not said:
        pytest.fail("nothing is said of the ignored ends")
    rose = any(word in said for word in ("helped", "raised", "gained", "+"))
    assert rose is up or "no effect" in said, said
