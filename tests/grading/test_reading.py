"""Answers as models write them: every dress read, nothing credited that was not stated, and the rule on record."""

import json
import pathlib

import grader_opinions
import grading_cases
import hypothesis
import hypothesis.strategies as st
import pytest

from s1jax.grading import equality, extract, grade
from s1jax.grading.pool import Grader

# Numbers and formulas: gold, answer segment, kind, whether it gets credit.
VALUES = [
    ("34", "The answer is not 34.", "math", False),
    ("34", "I computed 34 at first but it is wrong.", "math", False),
    ("34", "Let me think about 34.", "math", False),
    ("34", "Is the answer 34?", "math", False),
    ("34", "The answer is 34 more than 5.", "math", False),
    ("34", "The answer is 34 if n is odd and 35 otherwise.", "math", False),
    ("34", "Answer: 34 or 35", "integer", False),
    ("34", "Answer: 34 or 35", "math", False),
    ("34", "Answer: 33, 34", "math", False),
    ("34", r"\boxed{33} or \boxed{34}", "math", False),
    ("34", r"\boxed{33} or \boxed{34}", "integer", False),
    ("34", r"Either $\boxed{34}$ or perhaps $\boxed{35}$.", "math", False),
    ("34", "The answer is between 34 and 40.", "math", False),
    ("34", "The answer is at least 34.", "math", False),
    ("34", "Answer: more than 34", "math", False),
    ("34", "Step 34: the answer follows.", "math", False),
    ("3", "The answer is 3 times 8, which is 24.", "math", False),
    ("24", "The answer is 3 times 8, which is 24.", "math", True),
    ("5", "Answer: See equation (5).", "math", False),
    ("5", "Final Answer: We need to add 2 and 3.", "math", False),
    ("5", "There are 5 apples in the problem.", "math", False),
    ("5", "I cannot give an answer: there are 5 unknowns.", "math", False),
    ("12", "Suppose the answer is 12. Then we have a contradiction.", "math", False),
    ("12", "A wrong answer is 12.", "math", False),
    ("12", "Answer: 12\n\nWait, that is wrong.", "math", False),
    ("12", "Answer: 12\n\nWait, no: the answer is 13.", "math", False),
    ("13", "Answer: 12\n\nWait, no: the answer is 13.", "math", True),
    ("12", "Answer: 12. Actually, 13.", "math", False),
    ("13", "Answer: 12. Actually, 13.", "math", True),
    ("12", "The answer is 12. Correction: 13.", "math", False),
    ("13", "The answer is 12. Correction: the answer is 13.", "math", True),
    ("12", "The answer is 12.5.", "integer", False),
    ("12", "The answer is 12.5.", "math", False),
    ("12", "The answer is 12,5.", "number", False),
    ("12", "Answer: 12/5", "math", False),
    ("1", "Answer: 1/3", "math", False),
    ("1", "Answer: 1:3", "math", False),
    ("2", "Answer: 2 out of 5", "math", False),
    ("2", "The answer is 2 thousand.", "number", False),
    ("2", "Answer: 2 million", "number", False),
    ("2", "Answer: 2^5", "math", False),
    ("2", "Answer: 2 x 5 = 10", "math", False),
    ("5", "Answer: -5", "integer", False),
    ("5", "Answer: \u22125", "integer", False),
    ("5", "Answer: \u20135", "integer", False),
    ("3", r"\boxed{x+y=3}", "math", False),
    ("3", r"\boxed{x+y=3}", "integer", False),
    ("0", r"\boxed{x^2-4=0}", "math", False),
    ("5", r"\boxed{5\%}", "math", False),
    ("5", r"\boxed{5\%}", "integer", False),
    ("5", "Answer: 5 percent", "math", False),
    ("0.05", r"\boxed{5\%}", "math", True),
    ("5 cm", r"\boxed{5 cm^2}", "math", False),
    (r"5\text{ cm}", r"\boxed{5\text{ cm}^2}", "math", False),
    (r"5\text{ cm}^2", r"\boxed{5\text{ cm}}", "math", False),
    (r"5\text{ cm}^2", r"\boxed{5\text{ square centimeters}}", "math", True),
    ("100,200", r"\boxed{100200}", "math", False),
    ("100200", r"\boxed{100,200}", "math", True),
    ("100200", r"\boxed{100, 200}", "math", False),
    ("100, 200", r"\boxed{100200}", "math", False),
    ("100,200", r"\boxed{100, 200}", "math", True),
    ("100,200", r"\boxed{200, 100}", "math", True),
    ("58,500", r"\boxed{58500}", "math", True),
    ("58500", r"\boxed{58{,}500}", "math", True),
    ("x", r"\boxed{X}", "math", False),
    ("3R^2", r"\boxed{3r^2}", "math", False),
    ("2x+1", r"\boxed{1+2X}", "math", False),
    (r"\text{Even}", r"\boxed{even}", "math", True),
    (r"\text{(C)}", r"\boxed{C}", "math", True),
    (r"\text{(C)}", r"\boxed{(c)}", "math", True),
    (r"\frac{\sqrt{3}}{2}", r"\boxed{\sin 60^\circ}", "math", True),
    (r"\frac{1}{2}", r"\boxed{\sin 60^\circ}", "math", False),
    (r"\frac12", r"\boxed{\sin(30^{\circ})}", "math", True),
    ("1", r"\boxed{\tan 45^\circ}", "math", True),
    (r"\sin 60", r"\boxed{\sin 60^\circ}", "math", False),
    (r"\sin 60^\circ", r"\boxed{\sin 60^\circ}", "math", True),
    (r"\sin 60^\circ", r"\boxed{\frac{\sqrt3}{2}}", "math", True),
    (r"60^\circ", r"\boxed{60}", "math", True),
    ("7/2", r"\boxed{3 1/2}", "math", True),
    (r"\frac72", "Answer: 3 1/2", "math", True),
    ("3.5", "Answer: 3 1/2", "number", True),
    ("31/2", "Answer: 3 1/2", "math", False),
    ("1200", r"\boxed{1.2e3}", "math", True),
    ("0.0012", r"\boxed{1.2e-3}", "math", True),
    ("1200", r"\boxed{1.2\times 10^3}", "number", True),
    ("1200", r"\boxed{1.2e2}", "math", False),
    ("5", r"\boxed{x=5}", "math", True),
    ("5", r"\boxed{2x=5}", "math", False),
    ("5", r"\boxed{f(2)=5}", "math", True),
    ("1,-2", r"\boxed{x=1, x=-2}", "math", True),
    ("1,-2", r"\boxed{x=1 \text{ or } x=-2}", "math", True),
    ("1,-2", "The answer is 1 and -2.", "math", True),
    ("(2,3)", r"\boxed{(x,y)=(2,3)}", "math", True),
    ("1234567", "Answer: 1.234.567", "number", True),
    ("1234567", "Answer: 1\u202f234\u202f567", "number", True),
    ("1234.5", "Answer: 1.234,50 \u20ac", "number", True),
    ("1234", "Answer: 1'234", "number", True),
    ("12.5", "Answer: 12,5", "number", True),
    ("1234", "Answer: 1.234", "number", False),
    ("18", "The total cost is $18 and she has $2 left, so the answer is $18.", "number", True),
    ("2", "The total cost is $18 and she has $2 left, so the answer is $18.", "number", False),
    ("18", "Answer: $18 per day", "number", True),
    ("25", "The final answer is: 25\n", "aime", True),
    ("25", r"\boxed{m+n=25}", "aime", True),
    ("25", r"\boxed{\text{25}}", "aime", True),
    ("25", "Answer: 025", "aime", True),
    ("25", "Final Answer: I was not able to find it, but 25 is close.", "aime", False),
    ("7", r"Answer: $\frac{7}{2}$, so p+q = 9", "math", False),
    ("2", "Answer: $x^2$", "math", False),
    ("2", "Answer: 2x", "math", False),
    ("2", "Answer: 2 + k", "math", False),
    ("18", "Answer: 3 apples and 18 pears", "math", False),
    ("3", "Answer: 3 apples and 18 pears", "math", False),
    ("2024", "Answer: In 2024, the total will be 18.", "number", False),
    ("18", "Answer: In 2024, the total will be 18.", "number", True),
    ("5", "Answer (5 marks): 7", "number", False),
    ("7", "Answer (5 marks): 7", "number", True),
    ("4", "#### 4. Final computation\n\nWe get nothing.", "number", False),
    ("34", "So we find 34.", "math", False),
    ("34", "", "math", False),
    ("34", "Final Answer:", "math", False),
    ("34", "Final Answer: Final Answer: 34", "math", True),
    ("34", r"Final Answer: $\boxed{34}$.", "math", True),
    ("34", "Final Answer: The final answer is 34", "math", True),
    ("34", r"The answer is \text{34}.", "math", True),
    ("34", r"The answer is $\mathrm{34}$.", "math", True),
    ("3/4", r"Answer: $\dfrac{3}{4}$", "math", True),
    ("34", "Answer: 34.0", "integer", True),
    ("34", "The answer would be 34 apples, since 2*17 = 34.", "integer", True),
    ("34", "My answer is 34 (thirty-four).", "integer", True),
    ("34", "Thus, the number of ways is 34.", "integer", False),
    ("34", "the answer: 34", "integer", True),
    ("34", r"Answer: The number is $34$, because $17 \cdot 2 = 34$.", "integer", True),
    ("34", "> **Answer:** `34`", "integer", True),
    ("34", "- **Answer**: 34", "integer", True),
    ("34", "**Answer** : **34**", "integer", True),
    ("34", "__Answer:__ 34", "integer", True),
    ("34", "Final answer (to the nearest integer): 34", "integer", True),
    ("34", "The answer to part (a) is 12. The answer to part (b) is 34.", "integer", True),
    ("12", "The answer to part (a) is 12. The answer to part (b) is 34.", "integer", False),
    ("34", "The final answer is $n = 34$.", "math", True),
    ("34", "The final answer is $n=34$.", "integer", True),
    ("34", "Answer: **34** apples", "integer", True),
    ("34", "The answer is **34**.", "integer", True),
    ("34", "The answer is: **34**", "integer", True),
    ("34", "The answer is\n\n34", "integer", True),
    ("34", "The answer is thirty-four.", "integer", False),
    ("red fox", "The answer is red fox.", "exact", True),
    ("18", r"Answer: \$18", "number", True),
    ("18.9", r"\boxed{\$18.90}", "math", True),
    (r"\$18.90", r"\boxed{18.9}", "math", True),
]


# Choices: the same.
CHOICES = [
    ("C", "ANSWER: C", "letter", True),
    ("C", "Answer: (C) text of the choice", "letter", True),
    ("C", "The correct option is **C**", "letter", True),
    ("C", 'Answer: "C"', "letter", True),
    ("C", "**Final Answer**\n\n**C**", "letter", True),
    ("C", "Answer: B or C", "letter", False),
    ("C", "Answer: C or B", "letter", False),
    ("A", "Answer: A proton is lost", "letter", False),
    ("B", "Answer: Boron", "letter", False),
    ("C", "The answer is not C.", "letter", False),
    ("C", "Option C is wrong.", "letter", False),
    ("C", "The answer is D, not C.", "letter", False),
    ("D", "The answer is D, not C.", "letter", True),
    ("C", "Final Answer: Options (A) and (C) are incorrect.", "letter", False),
    ("C", "Final Answer: (C) is incorrect.", "letter", False),
    ("A", "A", "letter", True),
    ("A", "I think a cat", "letter", False),
    ("D", "The answer is for sure D, it can't be A or B", "letter", True),
    ("BC", "(B) and (C)", "letters", True),
    ("BC", "Final Answer: (B) and (C) are correct.", "letters", True),
    ("BC", "Answer: BC", "letters", True),
    ("BC", "Answer: B, C", "letters", True),
    ("BC", "Answer: **B** and **C**", "letters", True),
    ("BC", r"\boxed{\text{B, C}}", "letters", True),
    ("BC", r"\boxed{B} and \boxed{C}", "letters", True),
    ("BC", "The correct options are (A), (B) and (C).", "letters", False),
    ("BC", "Final Answer: (B) or (C)", "letters", False),
    ("BC", "Final Answer: Options (B) and (C) are false.", "letters", False),
    ("BC", "Answer: B", "letters", False),
    ("BC", "The correct options are:\n(B) Orbital capture\n(C) emission", "letters", True),
    ("BC", "Final Answer:\n(A) FALSE\n(B) TRUE\n(C) TRUE\n(D) FALSE", "letters", True),
    ("AC", "Final answer: Statements (A) and (C) are true.", "letters", True),
    ("ABD", "Final Answer: Options [A], [B], and [D] are true.", "letters", True),
    ("C", "Final Answer: Only option [C] is correct.", "letters", True),
    ("BC", r"So the answer is \(B\) and \(C\).", "letters", True),
]


@pytest.fixture(scope="module")
def grader():
    with Grader(processes=2, seconds=1) as grader:
        yield grader


@pytest.mark.parametrize("cases", [VALUES, CHOICES], ids=["values", "choices"])
def test_credit_goes_to_what_is_stated(grader, cases):
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
