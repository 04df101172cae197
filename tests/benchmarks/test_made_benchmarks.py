"""Benchmarks read from made-up rows of their published schemas: where a question, its answer and its id come from."""

import hashlib
import json

import datasets
import pytest

from s1jax import records
from s1jax.benchmarks import BENCHMARKS
from s1jax.benchmarks.benchmark import first_field, lettered, local, row_id, shuffled
from s1jax.config import BadInput
from s1jax.records import Question, question_id

# One row of each published schema, made up, and the question that it is.
PUBLISHED = {
    "aime24": [
        (
            {"id": 7, "problem": "How many?", "solution": "Count.", "answer": "033", "url": "u", "year": "2024"},
            Question("7", "How many?", "033", None, "Count.", "aime24"),
        ),
        (
            {"problem": "How many?", "expected_answer": 33, "reference_solution": "Count."},
            Question(question_id("How many?"), "How many?", "33", None, "Count.", "aime24"),
        ),
    ],
    "aime25": [
        (
            {"id": 3, "problem": "How far?", "answer": 588},
            Question("3", "How far?", "588", source="aime25"),
        )
    ],
    "math500": [
        (
            {
                **{"problem": "What is 1/2?", "solution": "It is $\\boxed{\\frac12}$.", "answer": "\\frac12"},
                **{"subject": "Algebra", "level": 3, "unique_id": "test/algebra/1.json"},
            },
            Question(
                *("test/algebra/1.json", "What is 1/2?", "\\frac12", None),
                *("It is $\\boxed{\\frac12}$.", "math500", "Algebra"),
            ),
        ),
    ],
    "gsm8k": [
        (
            {"question": "Ann has 2 #s. How many?", "answer": "She has #### two.\n#### 1,234 "},
            Question(
                question_id("Ann has 2 #s. How many?"), "Ann has 2 #s. How many?", "1,234", None,
                "She has #### two.\n#### 1,234 ", "gsm8k",
            ),
        ),
    ],
}  # fmt: skip
SIZES = {"aime24": 30, "aime25": 30, "math500": 500, "gsm8k": 1319, "gpqa_diamond": 198}
HUBS = {
    "aime24": ("simplescaling/aime24_nofigures", None, "train"),
    "math500": ("simplescaling/openaimath", None, "test"),
    "gsm8k": ("openai/gsm8k", "main", "test"),
    "gpqa_diamond": ("Idavidrein/gpqa", "gpqa_diamond", "train"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_of_the_published_schema(name, tmp_path):
    bench = BENCHMARKS[name]
    for row, expected in PUBLISHED[name]:
        records.write_jsonl(tmp_path / bench.file, [row])
        for source in (str(tmp_path), str(tmp_path / bench.file)):
            [found] = bench.load(source)
            assert found == expected
        assert bench.prompt(found) == found.text


def test_sizes_kinds_and_places():
    assert {name: bench.size for name, bench in BENCHMARKS.items()} == SIZES
    kinds = {"aime24": "aime", "aime25": "aime", "math500": "math", "gsm8k": "number", "gpqa_diamond": "letter"}
    assert {name: bench.kind for name, bench in BENCHMARKS.items()} == kinds
    assert {name: BENCHMARKS[name].hub for name in HUBS} == HUBS
    assert [name for name, bench in BENCHMARKS.items() if bench.private] == ["gpqa_diamond"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_where_questions_are_looked_for(name, tmp_path, monkeypatch):
    """The source given, else the shared folder, else the hub."""
    bench, (row, expected) = BENCHMARKS[name], PUBLISHED[name][0]
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((*arguments, options["split"]))
        return datasets.Dataset.from_list([row])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setenv("S1JAX_SHARED", str(tmp_path))
    [found] = bench.load()
    assert asked == [bench.hub] and found.text == expected.text
    [found] = bench.load("some/other")
    assert asked[1:] == [("some/other", *bench.hub[1:])], "another set of the same form"
    (tmp_path / "data" / "benchmarks").mkdir(parents=True)
    records.write_jsonl(tmp_path / "data" / "benchmarks" / bench.file, [row, {**row, "id": "b", "unique_id": "b"}])
    if name != "gsm8k":  # whose rows have no id, so two of one question are refused
        assert len(bench.load()) == 2 and len(asked) == 2


def test_fields_that_are_missing_are_named(tmp_path):
    records.write_jsonl(tmp_path / "x.jsonl", [PUBLISHED["aime24"][0][0], {"problem": "p", "other": 1}])
    with pytest.raises(
        BadInput, match=r"x.jsonl row 2 has no field 'answer' \(it has problem, other\); is it a file of"
    ):
        BENCHMARKS["aime24"].load(str(tmp_path / "x.jsonl"))
    assert first_field({"a": None, "b": 0}, "a", "b") == 0
    with pytest.raises(KeyError, match="a"):
        first_field({"c": 1}, "a", "b")
    assert [row_id(row, "t") for row in ({"id": 0}, {"unique_id": "u"}, {"id": None})] == ["0", "u", question_id("t")]


def test_choices_are_shuffled_by_the_question_alone():
    """The k-th of the orders in lexicographic order, k being the hash modulo their number."""
    for text in ("one", "two", "three"):
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 24
        rest, order = list(range(4)), []
        for size in (6, 2, 1, 1):
            index, number = divmod(number, size)
            order.append(rest.pop(index))
        choices, letter = shuffled(text, "wxyz", 2)
        assert choices == tuple("wxyz"[i] for i in order) and choices["ABCD".index(letter)] == "y"


def test_a_question_with_letters():
    question = Question("i", "Which?", "B", ("p", "q", "r"))
    assert lettered(question) == "Which?\n\nA) p\nB) q\nC) r"
    assert lettered(Question("i", "Which?", "B")) == "Which?\n"


def test_rows_of_ones_own(tmp_path):
    path = tmp_path / "own.jsonl"
    rows = [
        {"question": "a?", "choices": ["p", "q"], "answer": "q"},
        {"question": "b?", "choices": ["p", "q"], "answer": 0, "id": "i", "source": "s"},
        {"problem": "c?", "choices": ["B", "A"], "expected_answer": "A"},
        {"question": "d?", "choices": list("klmnopqrst"), "answer": "J"},
    ]
    records.write_jsonl(path, rows)
    bench = local(str(path))
    assert (bench.name, bench.kind, bench.size, bench.home) == ("own", "letter", None, str(path))
    assert [(q.id, q.text, q.answer, q.source) for q in bench.load()] == [
        *((question_id("a?"), "a?", "B", ""), ("i", "b?", "A", "s")),
        *((question_id("c?"), "c?", "B", ""), (question_id("d?"), "d?", "J", "")),
    ]
    for answer in (2, -1, "C", "z"):
        records.write_jsonl(path, [{"question": "a?", "choices": ["p", "q"], "answer": answer}])
        with pytest.raises(BadInput, match="is no letter, text or index of its 2 choices"):
            local(str(path)).load()
    records.write_jsonl(path, [{"question": "a?", "answer": 5}])
    assert local(str(path)).kind == "math" and local(str(path), "integer").kind == "integer"
    assert local(str(path)).load()[0].answer == "5"
    assert json.loads(path.read_text()) == {"question": "a?", "answer": 5}
