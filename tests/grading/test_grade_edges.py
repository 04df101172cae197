"""Edges of grading: answers at their limits, votes by kind, and each limit of the workers alone."""

import threading
import time

import pytest

from s1jax.grading import compat, grade, pool


@pytest.mark.parametrize(
    ("text", "gold", "correct"),
    [
        (r"\boxed{000}", "0", True),
        (r"\boxed{0}", "000", True),
        (r"\boxed{999}", "999", True),
        (r"\boxed{033}", "33", True),
        (r"\boxed{1000}", "1000", False),
        (r"\boxed{-1}", "-1", False),
        (r"\boxed{34}", "33", False),
    ],
)
def test_answers_of_aime_are_from_000_to_999(text, gold, correct):
    assert grade.grade(text, gold, "aime").correct is correct


def test_exact_answers_vote_by_their_spelling():
    assert grade.vote_key("1/2", "exact") != grade.vote_key("0.5", "exact")
    assert grade.vote_key("025", "exact") != grade.vote_key("25", "exact")
    assert grade.vote_key("a b", "exact") == grade.vote_key(" a  b ", "exact")
    assert grade.vote_key("1/2", "math") == grade.vote_key("0.5", "math")
    assert grade.vote_key("025", "integer") == grade.vote_key("25", "integer") == "25"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### 3\nNo, again.\n#### 4", "4"),
        ("\\boxed{3} was wrong, so \\boxed{4}", "4"),
        ("Answer: 3\nAnswer: 4", "4"),
        ("The wrong answer: 7", None),
        ("This is not the final answer: 7", None),
        ("My previous incorrect answer: 7", None),
    ],
)
def test_the_last_answer_counts_and_a_denied_one_does_not(text, answer):
    for kind in ("integer", "math"):
        assert grade.grade(text, "4", kind).extracted == answer


@pytest.mark.parametrize(
    ("text", "gold", "kind", "extracted"),
    [
        ("Answer: b", "B", "letter", "B"),
        ("Answer: x", "A", "letter", "A"),
        ("\\boxed{1} and \\boxed{2}", "2", "math", "2"),
        ("\\fbox{1} and \\fbox{3}", "3", "math", "3"),
        ("Answer: 007", "7", "math", "007"),
        ("\\boxed 5$ and 6", "5", "math", "5"),
    ],
)
def test_upstreams_rules_on_plain_cases(text, gold, kind, extracted):
    assert compat.grade(text, gold, kind) == grade.Verdict(extracted, True)


def test_answers_are_equal_when_they_are_so_both_ways_round():
    assert grade.group(["a", "b"], "math", lambda one, other: one < other) == [0, 1]
    assert grade.group(["a", "b"], "math", lambda one, other: one > other) == [0, 1]


def test_two_threads_ask_one_after_the_other(monkeypatch):
    """The workers' pipes are one conversation: a second question must not fall into the first."""
    grader = pool.Grader()
    inside, most, gate = [], [], threading.Event()

    def equal(pairs, *_):
        if pairs:
            inside.append(pairs)
            most.append(len(inside))
            gate.wait(0.3)
            inside.remove(pairs)
        return [True] * len(pairs)

    monkeypatch.setattr(grader, "_equal", equal)
    threads = [threading.Thread(target=grader.equal, args=([(f"{i}", "x")],)) for i in range(3)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]


def test_a_comparison_that_computes_too_long_is_ended_by_its_processor_time(monkeypatch):
    """With an hour of wall time: only the limit on processor time can end it."""
    monkeypatch.setattr(pool, "_WALL", 3600)
    start = time.monotonic()
    with pool.Grader(seconds=1) as grader:
        found = grader.equal([("10^{10^{10^{10}}}", "10^{10}"), ("x+1", "1+x")])
    assert [verdict is True for verdict in found] == [False, True]
    assert time.monotonic() - start < 300


def test_a_comparison_that_waits_is_ended_by_the_clock(monkeypatch):
    """With an hour of processor time: a worker that does not answer and computes nothing is ended all the same."""
    boot = pool._BOOT.replace("serve(*", "import s1jax.grading.pool as p, time; p.math_equal = SLOW; serve(*")
    slow = "lambda gold, answer: time.sleep(3600) if gold == 'sleep' else gold == answer"
    monkeypatch.setattr(pool, "_BOOT", boot.replace("SLOW", slow))
    monkeypatch.setattr(pool, "_WALL", 1)
    with pool.Grader(seconds=1) as grader:
        found = grader.equal([("sleep", "x"), ("y", "y"), ("y", "z")])
    assert [verdict is True for verdict in found] == [False, True, False]
