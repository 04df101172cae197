"""Curation on real data: benchmarks in every spelling, all sources, real traces, the shipped recipe."""

import collections
import dataclasses
import json
import pathlib
import re

import pytest
from curation_cases import candidate, quiet

from curation.decontaminate import Against, DecontaminateConfig
from curation.decontaminate import select as decontaminate
from curation.quality import QualityConfig
from curation.quality import select as judge_quality
from curation.run import CurateRun, run
from curation.sources import LOADERS, SourceConfig, load
from curation.stage import Candidate, Tools
from curation.traces import TracesConfig
from curation.traces import select as attach
from s1jax.config import load as load_config
from s1jax.records import read_jsonl


@pytest.fixture
def tools(tmp_path) -> Tools:
    return Tools(seed=3, folder=tmp_path, progress=quiet)


UPSTREAM = DecontaminateConfig(letters=False, symbols=None)


@pytest.fixture(autouse=True, scope="module")
def _shared_data(shared):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("S1JAX_SHARED", str(shared.parent))
        yield


def pool(kind: str) -> tuple[Candidate, ...]:
    return load(SourceConfig(kind=kind)).kept


def dropped_texts(candidates, selection) -> set[str]:
    kept = {c.question.text for c in selection.kept}
    return {c.question.text for c in candidates} - kept


# What upstream's own functions do, written as they are: joined strings, a lookup of sets, one shared n-gram is enough.
def upstream_flags(texts, tests, n=8):
    lookup = collections.defaultdict(set)
    for i, text in enumerate(texts):
        words = " ".join(text.lower().strip().split()).split()
        for j in range(len(words) - n + 1):
            lookup[" ".join(words[j : j + n])].add(i)
    flagged = set()
    for text in tests:
        words = " ".join(text.lower().strip().split()).split()
        for j in range(len(words) - n + 1):
            flagged |= lookup.get(" ".join(words[j : j + n]), set())
    return flagged


@pytest.mark.parametrize("kind", ["aime", "omni_math", "olympiadbench"])
def test_word_rule_is_upstreams(shared, tools, kind):
    candidates = pool(kind)
    names = ("math500", "aime24", "aime25")
    tests = [row["problem"] for name in names for row in read_jsonl(shared / "benchmarks" / f"{name}.jsonl")]
    flags = upstream_flags([c.question.text for c in candidates], tests)
    kept = set(map(id, decontaminate(candidates, UPSTREAM, tools).kept))
    assert {i for i, c in enumerate(candidates) if id(c) not in kept} == flags and flags


def test_all_of_math500_is_found_in_the_math_test_split(shared, tools):
    candidates = pool("math")
    math500 = {row["problem"] for row in read_jsonl(shared / "benchmarks" / "math500.jsonl")}
    assert len(math500) == 500 and math500 <= {c.question.text for c in candidates}
    config = DecontaminateConfig(against=(Against("math500"),))
    assert math500 <= dropped_texts(candidates, decontaminate(candidates, config, tools))
    # Upstream's rule alone cannot see a question of fewer than eight words (some share an 8-gram with none).
    missed = math500 - dropped_texts(candidates, decontaminate(candidates, dataclasses.replace(config, **WORDS), tools))
    assert missed == {text for text in math500 if len(text.split()) < 8} and len(missed) == 32


WORDS = {"letters": False, "symbols": None}


def test_aime_of_the_benchmark_years_is_found(shared, tools):
    rows = read_jsonl(shared / "pool" / "aime_1983_2024_qa.jsonl")
    of_2024 = {row["Question"] for row in rows if row["Year"] == "2024"}
    assert len(of_2024) == 14
    candidates = pool("aime")
    for config in (UPSTREAM, DecontaminateConfig()):
        assert of_2024 <= dropped_texts(candidates, decontaminate(candidates, config, tools))


@pytest.mark.parametrize(
    ("config", "found"),
    [(UPSTREAM, 124), (DecontaminateConfig(symbols=None), 128), (DecontaminateConfig(), 133)],
)
def test_recall_on_other_spellings(shared, tools, config, found):
    """134 other spellings of AIME24 and AIME25 problems."""
    rows = read_jsonl(shared / "benchmarks" / "variants.jsonl")
    candidates = [candidate(row["text"], id=str(i)) for i, row in enumerate(rows)]
    selection = decontaminate(candidates, config, tools)
    assert len(candidates) == 134 and len(selection.dropped) >= found
    if config is UPSTREAM:
        assert len(selection.dropped) == found


def test_recall_on_pairs_of_an_audit(shared, tools, tmp_path):
    """Word overlap is found where the audit's 8-grams over model tokens found it, paraphrase hardly ever."""
    rows = read_jsonl(shared / "contamination" / "pairs.jsonl")
    (tmp_path / "math500.jsonl").write_text("".join(json.dumps({"problem": r["math500_problem"]}) + "\n" for r in rows))
    config = DecontaminateConfig(against=(Against("pairs", str(tmp_path / "math500.jsonl")),))
    counts = {}
    for name, one in (("upstream", dataclasses.replace(config, **WORDS)), ("default", config)):
        candidates = [candidate(row["train_problem"], id=str(i)) for i, row in enumerate(rows)]
        dropped = {int(drop.id) for drop in decontaminate(candidates, one, tools).dropped}
        kinds = collections.Counter(rows[i]["contamination_type"] for i in dropped)
        counts[name] = (kinds["c_lex"], kinds["c_sem"])
        if name == "upstream":
            assert dropped == upstream_flags([r["train_problem"] for r in rows], [r["math500_problem"] for r in rows])
    total = collections.Counter(row["contamination_type"] for row in rows)
    assert (total["c_lex"], total["c_sem"]) == (95, 78)
    assert counts["upstream"] == (49, 5)
    assert counts["default"] == (52, 6)


def test_released_s1k_holds_math500(tools):
    """79 of its 912 open questions share a word 8-gram with MATH500, mostly the closing sentence of an AIME problem."""
    config = dataclasses.replace(UPSTREAM, against=(Against("math500"),))
    assert len(decontaminate(pool("s1k"), config, tools).dropped) == 79


def test_decontamination_never_quotes_a_benchmark(tools):
    selection = decontaminate(pool("math"), DecontaminateConfig(), tools)
    assert {drop.rule for drop in selection.dropped} == {"8-gram", "letters", "13-symbols"}
    assert all(len(drop.reason) < 80 for drop in selection.dropped)


@pytest.mark.parametrize("kind", ["math", "aime", "omni_math"])
def test_string_filters_equal_the_notebooks_on_the_pool(tools, kind):
    """data/filter.ipynb, cell 7, as it stands there."""

    def keeps(text, source):
        bad_part = any(f"p{i}." in text for i in range(1, 1000))
        if "[asy]" not in text and "![Image]" not in text and not bad_part:
            if not re.search(r"\*\*(?=.*\d)[^\s\]]*\*\*", text):
                return True
        return "[asy]" in text and "AIME" in source

    candidates = pool(kind)
    config = QualityConfig(required=(), part_substring=True, aime_asy=True)
    kept = judge_quality(candidates, config, tools).kept
    assert [c.question.text for c in kept] == [
        c.question.text for c in candidates if keeps(c.question.text, c.question.source)
    ]


NAMES = {
    "math": r"simplescaling/openaimath/((Intermediate )?Algebra|Counting & Probability|Geometry|Number Theory|Pre\w+)",
    "aime": r"qq8933/AIME_1983_2024",
    "omni_math": r"KbsdJames/Omni-MATH",
    "olympiadbench": r"Hothan/OlympiadBench/Open-ended/Math",
    "agieval": r"baber/agieval/(sat_en|sat_math|lsat_ar|lsat_lr|lsat_rc|logiqa_en|aqua_rat|math_agieval)",
    "theoremqa": r"TIGER-Lab/TheoremQA/(float|integer|bool|option|list of (integer|float))",
    "jeebench": r"daman1209arora/jeebench/(phy|chem|math)",
    "scieval": r"OpenDFM/SciEval/(chemistry|biology|physics)/[a-z-]+/[A-Za-z ]+",
    "livecodebench": r"LiveCodeBench/release_v5",
    "s1k": r".+",
    "s1k_traces": r".+",
    "transcripts": r"traces",
}


COUNTS = {
    "math": (5000, 0),
    "theoremqa": (747, 53),
    "jeebench": (515, 0),
    "aime": (1908, 0),
    "s1k": (912, 88),
    "transcripts": (637, 5),
}


@pytest.mark.parametrize("kind", sorted(NAMES))
def test_every_source_reads_under_the_names_of_s1(kind):
    selection = load(SourceConfig(kind=kind))
    assert set(NAMES) | {"rows"} == set(LOADERS)
    for row in selection.kept:
        assert re.fullmatch(NAMES[kind], row.question.source), row.question.source
        assert row.question.text.strip() and row.origin == kind
    if kind in COUNTS:
        assert (len(selection.kept), len(selection.dropped)) == COUNTS[kind]
    if kind not in ("livecodebench", "s1k", "s1k_traces"):
        with_gold = sum(row.question.answer is not None for row in selection.kept)
        assert with_gold >= 0.99 * len(selection.kept)


def closed_boxes(text: str) -> list[str]:
    """Contents of all boxes whose braces close, found by counting braces from each beginning."""
    found = []
    for start in (match.end() for match in re.finditer(r"\\boxed\{", text)):
        depth = 1
        for end in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0) if text[end - 1] != "\\" else 0
            if depth == 0:
                found.append(text[start:end])
                break
    return found


def test_transcripts_give_thinking_and_answer(shared):
    """A chat that breaks off within thinking is answered by a box of it, mostly the last; the verdict is the file's."""
    rows = {row["problem"]: row for row in read_jsonl(shared / "traces" / "qwen25_3b_budget_forcing_wait.jsonl")}
    selection = load(SourceConfig(kind="transcripts"))
    assert {drop.reason for drop in selection.dropped} == {"no thinking with an answer"}
    for one in selection.kept:
        row = rows[one.question.text]
        assert one.thinking and one.thinking in row["model_response"]
        assert one.correct is row["is_correct"]
        if "<|im_start|>answer" not in row["model_response"]:
            assert one.answer.removeprefix("Final Answer: \\boxed{")[:-1] in closed_boxes(one.thinking)


def test_real_traces_are_found_by_their_question(shared, tools):
    """The seven full rows of s1K give their traces to the questions of the released list."""
    [*pool] = load(SourceConfig(kind="s1k", path=str(shared / "s1k" / "s1k_1000.jsonl"))).kept
    config = TracesConfig(files=(str(shared / "s1k" / "s1k_full_rows.jsonl"),), grade=False)
    selection = attach(pool, config, tools)
    rows = read_jsonl(shared / "s1k" / "s1k_full_rows.jsonl")
    assert {c.question.text for c in selection.kept} == {row["question"] for row in rows} & {
        c.question.text for c in pool
    }
    assert len(selection.kept) >= 6
    for c in selection.kept:
        row = next(row for row in rows if row["question"] == c.question.text)
        assert (c.thinking, c.answer) == ("\n".join(row["thinking_trajectories"]), row["attempt"])
        assert c.thinking_length == len(row["thinking_trajectories"][0].split())


def test_answers_of_real_rows_are_graded(shared, tools):
    """Gold answers of s1K stand alone in `solution` (AIME) or in its box; Gemini's attempts at both are graded."""
    pool = load(SourceConfig(kind="rows", path=str(shared / "s1k" / "s1k_full_rows.jsonl"))).kept
    graded = [(c.question.answer, c.correct) for c in attach(pool, TracesConfig(), tools).kept]
    assert [pair for pair in graded if (pair[0] or "").isdigit()] == GRADED


GRADED = [("128", True), ("109", True), ("181", True)]


def test_length_in_tokens(shared, tools):
    rows = read_jsonl(shared / "s1k" / "s1k_full_rows.jsonl")
    expected = read_jsonl(shared / "s1k" / "s1k_full_rows_tokens.jsonl")
    pool = load(SourceConfig(kind="rows", path=str(shared / "s1k" / "s1k_full_rows.jsonl"))).kept
    config = TracesConfig(tokenizer=str(shared / "tokenizer" / "qwen2.5"), grade=False)
    kept = attach(pool, config, tools).kept
    assert [c.thinking_length for c in kept] == [row["thinking_tokens"] for row in expected] and len(rows) == 7


def test_shipped_recipe_on_the_real_pool(shared, tmp_path, monkeypatch):
    """The counts that the recipe's first lines promise."""
    monkeypatch.setenv("S1JAX_SHARED", str(shared.parent))
    recipe = pathlib.Path(__file__).parent.parent.parent / "configs" / "curate_s1k.yaml"
    folder = run(load_config(CurateRun, recipe, [f"out={tmp_path / 'out'}"]), progress=quiet)
    receipt = json.loads((folder / "receipt.json").read_text())
    assert (receipt["pool"], receipt["kept"]) == (16779, 1000)
    assert [(step["stage"], step["dropped"]) for step in receipt["stages"]][:5] == [
        ("deduplicate", 1051),
        ("traces", 4918),
        ("quality", 498),
        ("difficulty", 0),
        ("decontaminate", 1084),
    ]
