"""The filters: quality, duplicates, difficulty, and what decontamination refuses."""

import dataclasses

import pytest
from curation_cases import candidate, quiet
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.decontaminate import Against, DecontaminateConfig
from curation.decontaminate import select as decontaminate
from curation.deduplicate import DeduplicateConfig
from curation.deduplicate import select as deduplicate
from curation.difficulty import DifficultyConfig
from curation.difficulty import select as judge_difficulty
from curation.quality import FIELDS, QualityConfig
from curation.quality import select as judge_quality
from curation.stage import Tools
from curation.text import normalise, squeeze, symbol_ngrams, word_ngrams
from s1jax.config import BadInput


@pytest.fixture
def tools(tmp_path) -> Tools:
    return Tools(seed=3, folder=tmp_path, progress=quiet)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DecontaminateConfig(words=0), "words=0 must be at least 1"),
        (DecontaminateConfig(symbols=-1), "symbols=-1 must be at least 1"),
        (DecontaminateConfig(words=None, letters=False, symbols=None), "no rule left"),
        (DecontaminateConfig(against=(Against("gpqa_diamond"),)), "benchmark 'gpqa_diamond' has no file"),
    ],
)
def test_decontamination_that_cannot_be_done(tools, config, message):
    with pytest.raises(BadInput, match=message):
        decontaminate([], config, tools)


def test_benchmark_without_questions_is_refused(tools, tmp_path):
    (tmp_path / "b.jsonl").write_text('{"problem": "x"}\n{"answer": "1"}\n')
    with pytest.raises(BadInput, match="row 2 has no question in question, problem"):
        decontaminate([], DecontaminateConfig(against=(Against("b", str(tmp_path / "b.jsonl")),)), tools)


@settings(max_examples=100, deadline=None)
@given(
    words=st.lists(st.sampled_from(["a", "B", "$x$", "\\frac12", "1.5", "é", "-"]), max_size=12), n=st.integers(1, 9)
)
def test_normal_forms(words, n):
    text, spaced = " ".join(words), "\n  ".join(words) + " "
    assert normalise(text) == normalise(spaced) and word_ngrams(text, n) == word_ngrams(spaced, n)
    assert squeeze(text) == squeeze("".join(words).upper())
    assert len(word_ngrams(text, n)) <= max(0, len(words) - n + 1)
    assert symbol_ngrams(text, n) == symbol_ngrams(text.replace("$", " $ "), n)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("Find [asy]draw(A--B);[/asy]", "[asy]"),
        ("See ![Image](x.png)", "![Image]"),
        ("p1. Find x. p2. Find y.", "p1."),
        ("**p12.** Find x", "p1."),
        ("(p999.)", "p1."),
        ("see step1. and map2. then", None),
        ("p0. and p1000. and p1.5", None),
        ("**Problem 4** text", None),
        ("**4.** Find", "**1**"),
        ("**bold** without number", None),
        ("**bold** then 3", "**1**"),
        ("Find $x$.", None),
    ],
)
def test_string_filters(tools, text, rule):
    selection = judge_quality([candidate(text, thinking="t", answer="1")], QualityConfig(), tools)
    assert [drop.rule for drop in selection.dropped] == ([rule] if rule else [])
    assert judge_quality([candidate(text, thinking="t", answer="1")], QualityConfig(strings=False), tools).kept


def test_quirks_of_the_string_filters_have_switches(tools):
    rows = [
        candidate("see step1. then", id="step", thinking="t", answer="1"),
        candidate("[asy] p1. ", id="aime", source="qq8933/AIME_1983_2024", thinking="t", answer="1"),
        candidate("[asy]", id="asy", source="math", thinking="t", answer="1"),
    ]
    assert [d.id for d in judge_quality(rows, QualityConfig(), tools).dropped] == [rows[1].id, rows[2].id]
    quirks = QualityConfig(part_substring=True, aime_asy=True)
    assert [d.id for d in judge_quality(rows, quirks, tools).dropped] == [rows[0].id, rows[2].id]


@pytest.mark.parametrize(
    ("thinking", "answer", "reason"),
    [
        ("t", "\\boxed{1", "box is empty or never closed"),
        ("t", "\\boxed{}", "box is empty or never closed"),
        ("a <|im_start|>answer", "1", "the trace spells out '<|im_start|>'"),
        ("t", "<|im_start|>think", "the answer spells out"),
        ("caf\ufffd", "1", "the trace holds U+FFFD"),
        ("t", " \n", "no answer"),
        (None, "1", "no thinking"),
    ],
)
def test_malformed_traces(tools, thinking, answer, reason):
    [drop] = judge_quality([candidate("q", thinking=thinking, answer=answer)], QualityConfig(), tools).dropped
    assert reason in drop.reason


def test_required_fields_as_upstream_wants_them(tools):
    whole = candidate("q", gold="1", thinking="t", answer="1", correct=False, verdicts={"a": 0.0})
    whole = dataclasses.replace(whole, question=dataclasses.replace(whole.question, domain="d", solution="s"))
    config = QualityConfig(required=FIELDS)
    assert judge_quality([whole], config, tools).kept
    assert not judge_quality([whole], dataclasses.replace(config, correct_only=True), tools).kept
    unknown = dataclasses.replace(whole, correct=None)
    assert judge_quality([unknown], QualityConfig(correct_only=True), tools).kept, "not known to be wrong"
    for field in FIELDS:
        change = {"gold": {"answer": None}, "domain": {"domain": None}, "solution": {"solution": ""}}.get(field)
        if change:
            lacking = dataclasses.replace(whole, question=dataclasses.replace(whole.question, **change))
        else:
            lacking = dataclasses.replace(whole, **{field: {} if field == "verdicts" else None})
        [drop] = judge_quality([lacking], config, tools).dropped
        assert drop.reason == f"no {field}"


def test_a_row_that_may_lack_a_trace_or_an_answer_is_not_looked_at_for_their_form(tools):
    rows = [candidate("q", thinking="t"), candidate("r", answer="1"), candidate("s")]
    assert judge_quality(rows, QualityConfig(required=()), tools).kept == tuple(rows)


def test_quality_config_that_names_nothing(tools):
    with pytest.raises(BadInput, match="names 'colour'; the fields are thinking"):
        judge_quality([], QualityConfig(required=("colour",)), tools)
    with pytest.raises(BadInput, match="preset='s2' is not known"):
        judge_quality([], QualityConfig(preset="s2"), tools)


def test_duplicates(tools):
    rows = [
        candidate("Find $x + 1$ now", id="a", origin="one"),
        candidate("find  $x+1$ now", id="b", origin="two"),
        candidate("Find $x + 1$ now", id="c", origin="two"),
        candidate("another", id="a", origin="two"),
        candidate("\u222b", id="d", origin="one"),
        candidate("\u2211", id="e", origin="one"),
    ]
    assert [d.id for d in deduplicate(rows, DeduplicateConfig(), tools).dropped] == ["b", "c", "a"]
    assert [d.id for d in deduplicate(rows, DeduplicateConfig(match="text"), tools).dropped] == ["c", "a"]


def test_near_duplicates_across_sources_are_a_rule_of_their_own(tools):
    shared_words = "one two three four five six seven eight"
    rows = [
        candidate(f"A {shared_words}", id="a", origin="one"),
        candidate(f"B {shared_words}", id="b", origin="one"),
        candidate(f"C {shared_words}", id="c", origin="two"),
        candidate("one two three four five six seven nine", id="d", origin="two"),
    ]
    assert not deduplicate(rows, DeduplicateConfig(), tools).dropped
    [drop] = deduplicate(rows, DeduplicateConfig(ngram=8), tools).dropped
    assert (drop.id, drop.rule) == ("c", "near-duplicate") and "of one" in drop.reason
    with pytest.raises(BadInput, match="ngram=0 must be at least 1"):
        deduplicate(rows, DeduplicateConfig(ngram=0), tools)


def test_what_solvers_solve_is_too_easy(tools):
    rows = [
        candidate("none", id="none"),
        candidate("no", id="no", verdicts={"qwen7b": 0.0, "qwen32b": 0.0}),
        candidate("large", id="large", verdicts={"qwen7b": 0.0, "qwen32b": 1.0}),
        candidate("quarter", id="quarter", verdicts={"qwen7b": 0.25}),
    ]

    def kept(**config):
        return [c.id for c in judge_difficulty(rows, DifficultyConfig(**config), tools).kept]

    assert kept() == ["none", "no"]
    assert kept(unjudged="drop") == ["no"]
    assert kept(max_pass_rate=0.25) == ["none", "no", "quarter"]
    assert kept(solvers=("qwen7b",)) == ["none", "no", "large"]
    for config in (DifficultyConfig(max_pass_rate=1.5), DifficultyConfig(batch=0)):
        with pytest.raises(BadInput, match="must lie in 0 to 1"):
            judge_difficulty(rows, config, tools)


def test_solver_is_asked_once_for_each_question(tools):
    asked = []

    def solver(questions):
        asked.extend(question.text for question in questions)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return [{"small": float(question.text in "ab")} for question in questions]

    rows = [candidate(text, id=text) for text in "abcdef"] + [candidate("known", id="known", verdicts={"other": 0.0})]
    config = DifficultyConfig(batch=2)
    with pytest.raises(KeyboardInterrupt):
        judge_difficulty(rows, config, dataclasses.replace(tools, solver=solver))
    with (tools.folder / "verdicts.jsonl").open("a") as torn:
        torn.write('{"id": "cut o')
    selection = judge_difficulty(rows, config, dataclasses.replace(tools, solver=solver))
    assert asked == ["a", "b", "c", "d", "c", "d", "e", "f"]
    assert [c.id for c in selection.kept] == ["c", "d", "e", "f", "known"]
    later = [candidate("c", id="c", verdicts={"small": 1.0, "other": 0.0})]  # the row says otherwise by now
    told = judge_difficulty(later, config, dataclasses.replace(tools, solver=solver))
    assert len(asked) == 8 and not told.kept, "the row's own verdict stands"
    with pytest.raises(BadInput, match="gave 0 verdicts for 1 questions"):
        judge_difficulty([candidate("new")], config, dataclasses.replace(tools, solver=lambda questions: []))
