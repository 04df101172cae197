"""Statistics against brute force, simulation, other projects' cases and the paper's own table."""

import itertools
import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from s1jax.eval import scaling, stats
from s1jax.eval.findings import findings
from s1jax.eval.scaling import Point
from s1jax.grading import grade


def majority_by_enumeration(votes, correct, k):
    """The definition: every subset of k samples, winners by count, tied winners averaged, an empty ballot scores 0."""
    scores = []
    for subset in itertools.combinations(range(len(votes)), k):
        cast = [votes[i] for i in subset if votes[i] is not None]
        if not cast:
            scores.append(0.0)
            continue
        most = max(map(cast.count, cast))
        winners = sorted({vote for vote in cast if cast.count(vote) == most})
        everyone = {w: [correct[i] for i in range(len(votes)) if votes[i] == w] for w in winners}
        scores.append(np.mean([np.mean(everyone[w]) for w in winners]))
    return np.mean(scores)


@hypothesis.settings(max_examples=150, deadline=None, derandomize=True)
@hypothesis.given(
    st.lists(st.sampled_from(["1", "2", "3", "4", None]), min_size=1, max_size=8),
    st.integers(1, 8),
    st.sampled_from("1234"),
)
def test_majority_equals_enumeration(votes, k, gold):
    k = min(k, len(votes))
    correct = [float(vote == gold) for vote in votes]
    assert stats.majority_at_k(votes, correct, k) == pytest.approx(
        majority_by_enumeration(votes, correct, k), abs=1e-12
    )


def test_majority_of_many_equals_simulated_draws():
    generator = np.random.default_rng(0)
    votes = ["a"] * 14 + ["b"] * 17 + ["c"] * 9 + [str(i) for i in range(16)] + [None] * 8
    correct = [float(vote == "a") for vote in votes]
    draws = [generator.choice(len(votes), 16, replace=False) for _ in range(4000)]
    score = np.mean([majority_by_enumeration([votes[i] for i in d], [correct[i] for i in d], 16) for d in draws])
    assert stats.majority_at_k(votes, correct, 16) == pytest.approx(score, abs=4 * 0.5 / 4000**0.5)


def test_majority_of_two_is_one_sample_only_without_blanks():
    """Ties are shared, so two voters are worth one; a blank leaves the other voter alone."""
    assert stats.majority_at_k(["1", "2", "1"], [1, 0, 1], 2) == pytest.approx(2 / 3)
    assert stats.majority_at_k(["1", None], [1, 0], 2) == 1.0
    assert stats.majority_at_k([None, None], [0, 0], 2) == 0.0


def test_out_of_range_is_refused():
    with pytest.raises(ValueError, match="majority@3 of 2"):
        stats.majority_at_k(["1", "2"], [1, 0], 3)
    with pytest.raises(ValueError, match="pass@3 from 1 right of 2"):
        stats.pass_at_k(2, 1, 3)
    with pytest.raises(ValueError, match="every question"):
        stats.clustered([[1], []])
    with pytest.raises(ValueError, match="3 and 2 questions"):
        stats.paired_difference([[1], [0], [1]], [[1], [0]])
    with pytest.raises(ValueError, match="difference of 0"):
        stats.samples_needed([[1], [0]], 0.0)
    with pytest.raises(ValueError, match="0 single runs"):
        scaling.to_json([])


@pytest.mark.parametrize("n, right", [(5, 0), (5, 2), (6, 5), (4, 4)])
def test_pass_at_k_equals_enumeration(n, right):
    marks = [1] * right + [0] * (n - right)
    for k in range(1, n + 1):
        expected = np.mean([max(subset) for subset in itertools.combinations(marks, k)])
        assert stats.pass_at_k(n, right, k) == pytest.approx(expected)


def test_pass_and_majority_on_cases_of_lighteval(shared):
    """Left out: a lower-case letter, which counts here as upstream, and a majority that breaks ties by first seen."""
    cases = (shared / "graders/lighteval_metric_cases.jsonl").read_text(encoding="utf-8").splitlines()
    seen = 0
    for case in map(json.loads, cases):
        if case["file"] != "gpqa_instruct_pass_at_k" or "b" in case["model_response"]["text"]:
            continue
        gold = case["doc"]["choices"][case["doc"]["gold_index"]]
        marks = [grade.grade(text, gold, "letter").correct for text in case["model_response"]["text"]]
        n, k = case["metric_params"]["n"], case["metric_params"]["k"]
        (expected,) = case["expected_output"].values()
        assert stats.pass_at_k(n, sum(marks[:n]), k) == pytest.approx(expected)
        seen += 1
    assert seen == 7


def test_majority_on_real_answers_is_between_the_mean_and_certainty(shared):
    """maj@1 is the mean; maj@8 of 8 is the vote itself; on these 63 problems voting gains."""
    rows = [json.loads(line) for line in (shared / "votes/qwen25_math_maj8.jsonl").read_text("utf-8").splitlines()]
    single, voted = [], []
    for row in rows:
        votes = [grade.vote_key(text, "math") if text else None for text in row["pred"]]
        single.append(stats.majority_at_k(votes, row["score"], 1))
        voted.append(stats.majority_at_k(votes, row["score"], 8))
        assert single[-1] == pytest.approx(np.mean(row["score"]))
        assert voted[-1] == pytest.approx(majority_by_enumeration(votes, row["score"], 8))
    assert np.mean(voted) > np.mean(single)


def test_pairing_removes_the_difficulty_of_the_questions():
    generator = np.random.default_rng(2)
    p_Q = generator.beta(0.5, 0.5, size=200) * 0.9
    first, second = (generator.random((200, 4)) < (p_Q + gain)[:, None] for gain in (0, 0.08))
    paired = stats.paired_difference(first, second)
    assert paired.low < 0.08 < paired.high and paired.low > 0
    alone = stats.clustered(second)
    assert paired.high - paired.low < 0.8 * (alone.high - alone.low)
    assert stats.paired_difference(first, second) == paired


# arXiv 2501.19393, tables 3, 12, 13, 14 and figures 1, 6: average thinking tokens and AIME24 of n/30, and "Scaling".
PAPER = {
    "token-conditional": ("7939:8 7158:9 8263:10 7108:10 7500:12", -23.77, -4.8, -24),
    "token-conditional, forced": ("1024:1 2048:9 4031:10 5664:10 6330:12", 13.16, 6.7, 13),
    "step-conditional": ("7252:10 6277:7 5396:10 5552:11 7551:10", 2.93, 0.6, 3),
    "step-conditional, forced": ("1517:7 2963:7 4636:10 5409:11 7551:10", 6.41, 2.5, 6),
    "class-conditional": ("8033:9 9651:11", 25.18, 4.1, 25),
    "budget forcing": ("500:0 1000:4 2000:9 3933:13 5300:15", 14.80, 12.3, 15),
    "rejection": ("3703:11 4344:10 4734:9 5193:8 5293:7", -35.5, None, -35),
}


@pytest.mark.parametrize("name", PAPER)
def test_slopes_of_the_papers_table(name):
    data, log2, linear, published = PAPER[name]
    tokens, right = np.array([pair.split(":") for pair in data.split()], float).T
    slope = scaling.log2_slope(tokens, right / 30)
    assert slope == pytest.approx(log2, abs=0.05)
    assert abs(slope - published) < 0.51
    if linear is not None:
        assert scaling.linear_slope(tokens, right / 30) == pytest.approx(linear, abs=0.06)


def point(tokens, accuracy, questions=30, **fields):
    right = round(accuracy * questions)
    marks = (1.0,) * right + (0.0,) * (questions - right)
    fields = {"label": str(tokens), "budget": None, **fields}
    return Point(
        thinking_tokens=(float(tokens),) * questions,
        total_tokens=(tokens + 50.0,) * questions,
        accuracy=marks,
        **fields,
    )


def test_scaling_of_points_is_the_papers_slope():
    points = [point(tokens, n / 30) for tokens, n in ((500, 0), (1000, 4), (2000, 9), (3933, 13), (5300, 15))]
    interval = scaling.scaling(points)
    assert interval.value == pytest.approx(14.80, abs=0.01)
    assert 0 < interval.low < 14.8 < interval.high


def test_points_too_close_are_merged_and_points_below_one_token_are_left_out():
    assert scaling.merged([100, 0, 100.9, 101, 0.99, 200]) == [[0, 2], [3], [5]]
    close = [point(100, 0.2), point(100.5, 0.6), point(200, 0.7)]
    assert scaling.scaling(close).value == pytest.approx(30 / np.log2(200 / 100.25), rel=1e-6)
    assert scaling.scaling([*close, point(0, 0.9)]).value == scaling.scaling(close).value
    for few in ([point(100, 0.2)], [point(100, 0.2), point(100.5, 0.6)], [point(0, 0.1), point(50, 0.5)]):
        nothing = scaling.scaling(few)
        assert nothing.value is None and nothing.low is None and "1 of" in (nothing.reason or "")
    same = scaling.scaling([point(100, 0.2), point(100, 0.6)], merge=False)
    assert same.reason == "1 of 2 points are left to draw a slope through"


def test_merged_and_unmerged_slopes_stand_side_by_side():
    """Table 3's -24 is drawn through two points 0.7 % apart in tokens; as one point they leave next to nothing."""
    pairs = [pair.split(":") for pair in PAPER["token-conditional"][0].split()]
    points = [point(float(tokens), int(right) / 30) for tokens, right in pairs]
    data = scaling.to_json(points)
    assert data["scaling_unmerged"]["value"] == pytest.approx(-23.77, abs=0.01)
    assert data["scaling"]["value"] == pytest.approx(-0.67, abs=0.01)
    for key in ("scaling", "scaling_unmerged"):
        assert data[key]["low"] < data[key]["value"] < data[key]["high"]
    said = findings(points, data)
    assert "drawn through all of them, as in the paper, it is -23.8 points per doubling" in " ".join(said)
    assert not any("drawn through all" in one for one in findings(points[:2], scaling.to_json(points[:2])))


def test_control_counts_rows_and_the_papers_control_counts_runs():
    kept = point(90, 0.5, budget=100, within=(1.0,) * 30)
    broken = point(99, 0.5, budget=100, within=(1.0,) * 15 + (0.0,) * 15)
    over = point(150, 0.5, budget=100, within=(0.0,) * 30)
    assert scaling.control([kept, broken]).value == 0.75
    assert scaling.control_of_runs([kept, broken, over]).value == pytest.approx(2 / 3)
    assert scaling.control([kept]).to_dict() == {"value": 1.0, "low": pytest.approx(0.025 ** (1 / 30)), "high": 1.0}
    assert scaling.control([point(9, 0.5)]).reason == "no setting limits thinking"
    assert scaling.control_of_runs([point(9, 0.5)]).reason == "no setting has a budget"


def test_scaling_json_is_plain_data_with_votes_apart():
    points = [
        point(0, 0.1, budget=0),
        point(100, 0.3, budget=100),
        point(200, 0.6, budget=200),
        point(800, 0.5, votes=4),
    ]
    data = json.loads(json.dumps(scaling.to_json(points, benchmark="x")))
    assert data["format"] == "s1jax.scaling/1" and data["benchmark"] == "x" and data["questions"] == 30
    assert [p["slope_group"] for p in data["points"]] == [None, 0, 1]
    assert [p["votes"] for p in data["votes"]] == [4]
    assert data["performance"]["value"] == 0.6 and data["scaling"]["value"] == pytest.approx(30.0)
    assert data["points"][2]["interval"]["low"] < 0.6 < data["points"][2]["interval"]["high"]
    with pytest.raises(ValueError, match="same questions"):
        scaling.to_json([point(1, 0.5), point(2, 0.5, questions=29)])
