"""The quickstart's task: questions, traces and junk, recounted independently of the code that writes them."""

import collections
import random
import re

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from curation.decontaminate import Against, DecontaminateConfig
from curation.run import CurateRun, run
from curation.sources import SourceConfig
from s1jax.config import BadInput
from s1jax.quickstart import task
from s1jax.quickstart.recipe import Words
from s1jax.records import Question, read_jsonl, write_jsonl

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def held_out() -> list[Question]:
    return task.questions(2, 300, held_out=True)


@pytest.fixture(scope="module")
def pool(held_out) -> list[dict]:
    return task.pool(1, 3000, held_out)


@pytest.fixture(scope="module")
def taught() -> list[tuple[str, str, int, bool]]:
    """(word, trace, answer, correct) of 3,000 questions."""
    rng = random.Random(3)
    rows = []
    for question in task.questions(5, 3000):
        thinking, answer, correct = task.trace(question, rng)
        rows.append((re.sub(r"\d", "", question.text.split(" in ")[1]).replace(" ", ""), thinking, answer, correct))
    return rows


def recount(word: str, first_line: list[str], checks: list[list[str]]) -> None:
    """Every step against counts over the whole word, not against running sums."""
    doubled = [start for start in range(0, len(word) - 1, 2) if word[start : start + 2] == "rr"]
    for number, step in enumerate(first_line, 1):
        end = min(2 * number, len(word))
        assert step == f"{end}:{word[:end].count('r') - sum(start < end for start in doubled)}"
    position = 0
    for steps in checks:
        if position == len(word):
            assert steps == [f"all:{word.count('r')}"]
            continue
        assert len(steps) == 2 or position + 2 >= len(word)
        for step in steps:
            position = min(position + 2, len(word))
            assert step == f"{position}:{word.count('r') - sum(start >= position for start in doubled)}"


def lines_of(thinking: str) -> tuple[list[str], list[list[str]]]:
    first, *rest = thinking.split("\n")
    assert all(line.startswith("Wait ") for line in rest)
    return first.split(" "), [line.split(" ")[1:] for line in rest]


def test_questions_are_a_function_of_the_seed():
    assert task.questions(7, 50) == task.questions(7, 50)
    assert task.questions(7, 20) == task.questions(7, 50)[:20]
    assert task.questions(7, 50) != task.questions(8, 50)


def test_questions_are_unique_and_answered(held_out):
    for asked in (task.questions(1, 2000), held_out):
        assert len({question.text for question in asked}) == len({question.id for question in asked}) == len(asked)
        for question in asked:
            places = question.text.removeprefix("How many r in ").split(" ")
            assert [int(re.sub(r"\D", "", place)) for place in places] == list(range(1, len(places) + 1))
            assert question.answer == str(sum(place.endswith("r") for place in places))
            assert 5 <= len(places) <= 12 and question.domain == f"{len(places)} letters"
            assert task.ask(task.word_of(question.text)) == question.text


def test_no_training_question_is_held_out(held_out):
    training, kept = task.questions(1, 5000), {question.text for question in held_out}
    assert not kept & {question.text for question in training}
    assert all(task.is_held_out(text) for text in kept)
    assert not any(task.is_held_out(question.text) for question in training)


def test_more_questions_than_there_are_is_an_error():
    with pytest.raises(BadInput, match="of 1000 questions asked for, only .* can be found; ask for fewer"):
        task.questions(0, 1000, words=Words(shortest=6, longest=6, doubled=(0.0, 0.0, 0.0, 1.0)))


def test_split_is_by_the_text():
    # First four bytes of sha256("How many r in 1r 2a 3s 4p 5b 6e 7r 8r 9y"), from another tool: sha256sum.
    raspberry = task.ask("raspberry")
    assert raspberry == "How many r in 1r 2a 3s 4p 5b 6e 7r 8r 9y"
    assert task.is_held_out(raspberry) == (int("34d2ca46", 16) % 10 == 0)


def test_every_step_of_every_trace_is_recounted(taught):
    for word, thinking, answer, correct in taught:
        first, checks = lines_of(thinking)
        recount(word, first, checks)
        last = re.findall(r":(\d+)", thinking)[-1]
        assert answer == f"Final Answer: {last}"
        assert correct == (int(last) == word.count("r"))


def test_no_step_leads_away_from_the_truth(taught):
    for word, thinking, _, _ in taught:
        estimates = [int(count) for count in re.findall(r":(\d+)", thinking)]
        assert estimates == sorted(estimates) and estimates[-1] <= word.count("r")


def test_first_pass_errs_by_the_question_alone():
    for question in task.questions(9, 200):
        word = task.word_of(question.text)
        firsts = [lines_of(task.trace(question, random.Random(seed))[0])[0] for seed in range(20)]
        longest = max(firsts, key=len)
        assert all(first == longest[: len(first)] for first in firsts)
        pairs = [word[start : start + 2] for start in range(0, len(word), 2)]
        assert task.glance(word)[-1] == word.count("r") - pairs.count("rr")


def test_checks_mend_every_error_in_the_end():
    wrong = [0] * 5
    for question in task.questions(11, 2000):
        for waits in range(5):
            wrong[waits] += str(task.think(task.word_of(question.text), waits)[1]) != question.answer
    assert wrong[0] > 900 and wrong[0] > 1.2 * wrong[1] > 2 * wrong[2] > 200 > 0 == wrong[3] == wrong[4]


def test_shares_of_wrong_checked_and_hasty_traces(taught):
    share = 1 / len(taught)
    assert 0.34 < share * sum(not correct for *_, correct in taught) < 0.43
    assert 0.33 < share * sum("Wait" in thinking for _, thinking, _, _ in taught) < 0.42
    hasty = [len(lines_of(thinking)[0]) < (len(word) + 1) // 2 for word, thinking, _, _ in taught]
    assert 0.08 < share * sum(hasty) < 0.12


def test_the_teacher_stops_more_often_than_not(taught):
    """Greedy decoding then ends by itself after the first pass and after each forced check."""
    waits = collections.Counter(thinking.count("Wait") for _, thinking, _, _ in taught)
    for number in range(4):
        reached = sum(count for length, count in waits.items() if length >= number)
        assert waits[number] / reached > 0.5, f"after {number} waits {waits[number]} of {reached} stop"
    assert waits[4] > 20


def test_pool_holds_each_kind_as_documented(pool, held_out):
    kinds = collections.Counter(row["source"].removeprefix("quickstart/") for row in pool)
    assert kinds == {"words": 2730, "near_duplicate": 60, "duplicate": 60, "malformed": 60, "too_easy": 90}
    assert pool == task.pool(1, 3000, held_out) != task.pool(2, 3000, held_out)
    assert len({row["id"] for row in pool}) == len(pool)
    texts = collections.Counter(row["question"] for row in pool)
    assert sum(count - 1 for count in texts.values()) == 60
    assert not set(texts) & {question.text for question in held_out}


def test_curation_removes_the_junk_and_nothing_else(held_out, tmp_path):
    pool = task.pool(1, 400, held_out)
    write_jsonl(tmp_path / "pool.jsonl", pool)
    write_jsonl(tmp_path / "held_out.jsonl", [{"id": q.id, "question": q.text} for q in held_out])
    against = (Against("held_out", str(tmp_path / "held_out.jsonl")),)
    config = CurateRun(
        sources=(SourceConfig(path=str(tmp_path / "pool.jsonl")),),
        stages=("quality", "deduplicate", "difficulty", "decontaminate"),
        decontaminate=DecontaminateConfig(against=against, words=None, letters=True, symbols=None),
        out=str(tmp_path / "out"),
    )
    rows = read_jsonl(run(config, solver=task.solver, progress=lambda line: None) / "rows.jsonl")
    assert {row["source"] for row in rows} <= {"quickstart/words", "quickstart/duplicate"}
    words = {row["question"] for row in pool if row["source"] == "quickstart/words"}
    assert {row["question"] for row in rows} == words and len(rows) == len(words)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\S+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, show_progress=False, initial_alphabet=alphabet, special_tokens=SPECIAL
    )
    made.train_from_iterator(task.corpus(0, 500), trainer)
    return made


def test_corpus_makes_every_word_one_id_and_rows_fit(tokenizer, pool):
    longest = 0
    for row in pool:
        if row["source"] == "quickstart/words":
            prompt = f"<|im_start|>user\n{row['question']}<|im_end|>\n<|im_start|>assistant\n"
            body = f"<|im_start|>think\n{row['thinking']}\n<|im_start|>answer\n{row['answer']}<|im_end|>\n"
            ids = tokenizer.encode(prompt + body).ids
            pieces = re.findall(r"<\|\w+\|>| ?[^\s<]+|\s+", prompt + body)
            assert len(ids) == len(pieces), (row, tokenizer.encode(prompt + body).tokens)
            longest = max(longest, len(ids))
    assert longest == task.RECIPE.row_length
