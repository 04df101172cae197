"""Answers as models write them: every dress read, nothing credited that was not stated, and the rule on record."""

import json
import pathlib

import grader_opinions
import grading_cases
import grading_statements
import hypothesis
import hypothesis.strategies as st
import pytest

from s1jax.grading import equality, extract, grade
from s1jax.grading.pool import Grader


@pytest.fixture(scope="module")
def grader():
    with Grader(processes=2, seconds=1) as grader:
        yield grader


@pytest.mark.parametrize("name", ["VALUES", "CHOICES", "LANGUAGES"])
def test_credit_goes_to_what_is_stated(grader, name):
    cases = getattr(grading_statements, name)
    verdicts = grader.map([(text, gold, kind) for gold, text, kind, _ in cases])
    wrong = [(case, verdict) for case, verdict in zip(cases, verdicts, strict=True) if verdict.correct != case[3]]
    assert not wrong


def test_a_tenth_of_all_reference_answers_in_every_dress(shared, grader):
    """`tools/check_answers.py` reads all of them; docs/grading.md is its record."""
    cases = grading_cases.golds(shared, every=10)
    assert len(cases) == 188 and all(len(gold.wrong) == 3 and gold.answer not in gold.wrong for gold in cases)
    assert len(grading_cases.DRESSES) >= 14
    found = list(grading_cases.failures(grader, cases))
    assert not [row for row in found if row[2] or row[3]]
    assert len(found) == len(grading_cases.DRESSES) * len(grading_cases.BARS)


def test_every_case_of_other_graders_is_accounted_for(shared, grader):
    found = list(grader_opinions.opinions(shared, grader))
    assert len(found) == 487
    assert not [one for one in found if not one.is_alike and one.reason is None]
    assert not [one for one in found if one.is_alike and one.reason], "a reason for a case that is decided alike"


@pytest.mark.parametrize(
    "text, rule",
    [
        ("Answer: 4, so $\\boxed{4}$", "boxed"),
        ("It is 3 + 1.\n#### 4", "hash"),
        ("**Final Answer**\n\n$4$", "line"),
        ("Final Answer: The largest $n$ is 4.", "sentence"),
        ("So the answer is 4.", "statement"),
        ("Answer: 3. Actually, 4.", "correction"),
        ("$4$", "alone"),
    ],
)
def test_the_rule_that_found_an_answer_is_on_record(text, rule):
    verdict = grade.grade(text, "4", "math")
    assert (verdict.correct, verdict.rule) == (True, rule)
    assert set(extract.RULES) > extract.FALLBACKS and (rule in extract.FALLBACKS) == (
        rule in ("sentence", "statement", "correction")
    )


@pytest.mark.parametrize("kind", sorted(grade.KINDS))
def test_no_answer_has_no_rule(kind):
    for text in ("", " \n", "Final Answer:", "Let me think about it.", "We have 12 apples (A) and 3 pears (B)."):
        assert grade.grade(text, "12", kind) == grade.Verdict(None, False)


NUMBERS_IN_PROSE = st.lists(
    st.sampled_from(
        "so we get 34 of them . \n then 5 + 7 = 12 and ( 3 ) hence Tom has $18 left , at 60 % or \\( x = 9 \\)".split(
            " "
        )
    ),
    max_size=30,
).map(lambda words: "First, " + " ".join(words) + " and so on it goes")


@hypothesis.settings(max_examples=150, deadline=None, derandomize=True)
@hypothesis.given(NUMBERS_IN_PROSE)
def test_numbers_in_prose_are_never_answers(text):
    for kind in ("math", "aime", "integer", "number"):
        assert grade.grade(text, "34", kind).no_answer


@hypothesis.settings(max_examples=100, deadline=None, derandomize=True)
@hypothesis.given(st.integers(-999_999, 999_999), st.sampled_from(sorted(grading_cases.DRESSES)), st.integers(1, 9))
def test_integers_in_dresses(value, dress, off):
    """Right in every dress, and one that is off by a little is wrong; thousands may be set apart."""
    text = grading_cases.DRESSES[dress]
    for kind in ("math", "integer", "number"):
        for written in (f"{value}", f"{value:,}".replace(",", "{,}") if kind == "math" else f"{value:,}"):
            assert grade.grade(text.replace("@", written), str(value), kind).correct, (kind, written)
            assert not grade.grade(text.replace("@", written), str(value + off), kind).correct


def test_several_letters_of_jeebench_are_read_as_a_set(shared):
    """Where letters are found they are those that the project extracted, or those of its gold; few go unread."""
    path = pathlib.Path(shared) / "votes/jeebench_gpt4_cot.jsonl"
    rows = [row for row in map(json.loads, path.read_text("utf-8").splitlines()) if row["type"] == "MCQ(multiple)"]
    found = [grade.grade(row["response"], row["gold"], "letters") for row in rows]
    theirs = [row["extract"] for row in rows]
    read = [(ours.extracted, other) for ours, other in zip(found, theirs, strict=True) if not ours.no_answer]
    differ = [(row["index"], ours.extracted, row["extract"]) for row, ours in zip(rows, found, strict=True)
              if not ours.no_answer and ours.extracted != row["extract"]]  # fmt: skip
    assert len(read) >= 95 and len(differ) <= 4, (len(read), differ)


def test_equal_answers_are_one_group(grader):
    """By equality and not by spelling; the number is that of the first sample, None where there is no answer."""
    answers = ["\\frac{1}{2}", "x+1", None, "0.5", "1+x", "\\sqrt{117}", "3\\sqrt{13}", "2", "50\\%"]
    assert grader.group(answers, "math") == [0, 1, None, 0, 1, 5, 5, 7, 0]
    assert grader.group(["BC", "C", "BC"], "letters") == [0, 1, 0]
    assert grader.group(["025", "25", "m+n=25", "26"], "aime") == [0, 0, 0, 3]
    assert grader.group(["5\\text{ cm}", "5", "5\\text{ m}"], "math")[0] == 0
    assert grader.group([], "math") == []


def test_groups_are_transitive_and_in_the_order_of_samples():
    """a = b and b = c put a, b and c together although a = c is denied."""
    equal_pairs = {frozenset("ab"), frozenset("bc")}

    def equal(one: str, other: str) -> bool:
        return frozenset((one, other)) in equal_pairs

    assert grade.group(["a", "c", "b", "d"], "math", equal) == [0, 0, 0, 3]
    assert grade.group(["d", "b", "a", "c"], "math", equal) == [0, 1, 1, 1]
    assert grade.group(["a", "b"], "math", lambda one, other: None) == [0, 1]


def test_what_does_not_end_is_undecided_and_not_wrong(grader):
    verdicts = grader.map([("\\boxed{10^{10}}", "10^{10^{10^{10}}}", "math"), ("\\boxed{1+x}", "x+1", "math")])
    assert [(verdict.correct, verdict.undecided) for verdict in verdicts] == [(False, True), (True, False)]
    assert verdicts[0].extracted == "10^{10}" and not verdicts[0].no_answer


@pytest.mark.parametrize(
    "text", ["Answer: " + "(" * 5000, "Answer: $" * 3000, "the answer is " + "1, " * 5000, "\\boxed " * 9000]
)
def test_long_texts_end(text):
    for kind in grade.KINDS:
        assert not grade.grade(text, "12", kind).correct


def test_the_unit_and_its_power_are_compared():
    for gold, answer, verdict in [("5 cm", "5 cm^2", False), ("5 cm^2", "5 square cm", True), ("5", "5 cm^2", True)]:
        assert equality.same(gold, answer) is verdict
