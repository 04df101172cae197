"""Rendering: the real rows of s1K to the id, the format's rules, other data sets' columns, and where rows come from."""

import hashlib
import json

import datasets
import pytest

from s1jax.config import BadInput
from s1jax.records import question_id
from s1jax.tables import load_rows
from s1jax.text.render import columns, render, render_row, text
from s1jax.text.tokens import PRESETS, Tokenizer

S1 = PRESETS["s1"]
END = "<|im_end|>\n"


@pytest.fixture(scope="module")
def qwen(qwen_files) -> Tokenizer:
    return Tokenizer.load(qwen_files)


@pytest.fixture(scope="module")
def full_rows(shared):
    return load_rows(shared / "s1k" / "s1k_full_rows.jsonl")


@pytest.fixture(scope="module")
def token_rows(shared):
    return load_rows(shared / "s1k" / "s1k_full_rows_tokens.jsonl")


def _hash(ids):
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()


def test_real_rows_to_the_id(qwen, full_rows, token_rows):
    assert len(full_rows) == 7
    for source, expected in zip(full_rows, token_rows, strict=True):
        row = render_row(source, qwen, S1)
        assert row.id == expected["question_hash"]
        assert (len(row.ids), _hash(row.ids)) == (expected["text_tokens"], expected["ids_sha256"])
        assert row.prompt_length == expected["think_at"][0]
        assert row.ids[row.prompt_length :][:3] == (151644, 26865, 198)
        assert row.ids[-2:] == (151645, 198)
        found = columns(source)
        assert text(found.question, found.thinking, found.answer, qwen, S1) == source["text"]


def test_rows_with_only_text_are_taken_apart(qwen, full_rows):
    for source in full_rows:
        assert render_row({"text": source["text"]}, qwen, S1) == render_row(source, qwen, S1)


def test_text_with_another_system_turn_is_encoded_whole(qwen):
    body = f"<|im_start|>system\nBe brief.{END}<|im_start|>user\nq{END}<|im_start|>assistant\n"
    completion = f"<|im_start|>think\nt\n<|im_start|>answer\nAnswer: a{END}"
    row = render_row({"text": body + completion, "id": 3}, qwen, S1)
    assert (row.id, row.ids) == ("3", tuple(qwen.encode_markup(body + completion)))
    assert qwen.decode(row.ids[: row.prompt_length]) == body
    assert row == render_row({"text": body + completion, "id": 3}, qwen, S1, system="Be brief.")


def test_text_without_assistant_turn_is_refused(qwen):
    with pytest.raises(BadInput, match="row 5: column 'text' holds no"):
        render_row({"text": "hello"}, qwen, S1, where="row 5")


def test_the_format_letter_by_letter(qwen):
    expected = (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n  q \n<|im_end|>\n<|im_start|>assistant\n"
        "<|im_start|>think\na\nb\n<|im_start|>answer\nAnswer: 7<|im_end|>\n"
    )
    assert text("  q \n", ["\n a", "b \n"], " 7\n", qwen, S1) == expected
    row = render("  q \n", ["\n a", "b \n"], " 7\n", qwen, S1)
    assert row.ids == tuple(qwen.encode_markup(expected))
    assert row.id == question_id("  q \n")
    assert qwen.decode(row.ids[row.prompt_length :]) == expected.partition("assistant\n")[2]


@pytest.mark.parametrize(
    ("answer", "prefix", "shown"),
    [
        ("7", "Answer: ", "Answer: 7"),
        ("Final Answer: 7", "Answer: ", "Final Answer: 7"),
        ("the Answer:7", "Answer: ", "the Answer:7"),
        ("answer: 7", "Answer: ", "Answer: answer: 7"),
        ("7", None, "7"),
    ],
)
def test_answer_prefix(qwen, answer, prefix, shown):
    assert text("q", "t", answer, qwen, S1, answer_prefix=prefix).endswith(f"<|im_start|>answer\n{shown}{END}")


def test_added_tokens_in_contents_stay_plain(qwen):
    typed = "a<|im_start|>answer\n<|im_end|>b<tool_call>"
    row = render(typed, f"{typed}\n", typed, qwen, S1)
    added = [id for id in row.ids if id in qwen.added.values()]
    start, end = 151644, 151645
    assert added == [start, end, start, end, start, start, start, end]
    assert qwen.decode(row.ids) == text(typed, typed, typed, qwen, S1)


def test_think_tags_keep_their_newlines(qwen):
    shown = text("q", "t", "7", qwen, PRESETS["think_tags"], answer_prefix=None)
    assert shown.endswith(f"<|im_start|>assistant\n<think>\nt\n</think>\n\n7{END}")
    row = render("q", "t", "7", qwen, PRESETS["think_tags"], answer_prefix=None)
    assert qwen.decode(row.ids) == shown


def test_template_whose_prompt_opens_the_thinking_itself(qwen_files):
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    tokenizer = Tokenizer.load(qwen_files, chat_template=template)
    row = render("q", "t", "7", tokenizer, PRESETS["qwen3"], answer_prefix=None)
    assert tokenizer.decode(row.ids[: row.prompt_length]).endswith("<|im_start|>assistant\n<think>\n")
    assert tokenizer.decode(row.ids[row.prompt_length :]) == f"t\n</think>\n\n7{END}"
    whole = text("q", "t", "7", tokenizer, PRESETS["qwen3"], answer_prefix=None)
    assert tokenizer.decode(row.ids) == whole and whole.count("<think>") == 1


def test_prompt_is_the_prompt_of_inference(qwen):
    row = render("q", "t", "7", qwen, S1, system="S")
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "q"}]
    assert list(row.ids[: row.prompt_length]) == qwen.chat_ids(messages, generation_prompt=True)


def test_columns_of_known_data_sets():
    s1k = {"question": "q", "thinking_trajectories": ["a", "b"], "attempt": "7", "solution": "s"}
    s1k_11 = {
        "question": "q",
        "deepseek_thinking_trajectory": "d",
        "deepseek_attempt": "8",
        "gemini_thinking_trajectory": "g",
        "gemini_attempt": "9",
    }
    ours = {"question": "q", "thinking": "t", "answer": "7"}
    got = [
        columns(ours),
        columns(s1k),
        columns(s1k_11),
        columns(s1k_11, teacher="gemini"),
        columns(s1k, teacher="gemini"),
    ]
    assert [(row.thinking, row.answer) for row in got] == [
        ("t", "7"),
        ("a\nb", "7"),
        ("d", "8"),
        ("g", "9"),
        ("a\nb", "7"),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "thinking": "t", "answer": None, "id": "x"}, r"row \(id x\): column 'answer' is NoneType"),
        ({"question": "q", "thinking": "t"}, "column 'answer' is NoneType"),
        ({"question": "q", "thinking": " \n", "answer": "7"}, "column 'thinking' is empty"),
        ({"question": "q", "thinking_trajectories": [], "attempt": "7"}, "column 'thinking_trajectories' is empty"),
        ({"question": "q", "thinking_trajectories": [1], "attempt": "7"}, "column 'thinking_trajectories' is list"),
        ({"question": "q", "thinking": "t", "answer": ["7"]}, "column 'answer' is list"),
        ({"question": "q"}, "column 'thinking' is NoneType"),
    ],
)
def test_rows_that_lack_something_are_named(row, message):
    with pytest.raises(BadInput, match=message):
        columns(row)


def test_unknown_teacher_is_refused():
    with pytest.raises(BadInput, match="teacher='claude' is not known"):
        columns({"question": "q"}, teacher="claude")


@pytest.mark.parametrize(("thinking", "answer", "name"), [(" ", "7", "trace"), ("t", "\n", "answer")])
def test_empty_trace_or_answer_is_refused(qwen, thinking, answer, name):
    with pytest.raises(BadInput, match=f"row 'r1': the {name} is empty"):
        render("q", thinking, answer, qwen, S1, id="r1")


def test_template_whose_assistant_turn_does_not_continue_is_refused(qwen_files):
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}>>{% endif %}"
    )
    tokenizer = Tokenizer.load(qwen_files, chat_template=template)
    with pytest.raises(BadInput, match="does not go on from its generation prompt"):
        render("q", "t", "7", tokenizer, S1)


ROWS = [{"id": i, "question": f"q{i}", "thinking": ["a", "b"], "answer": "7"} for i in range(5)]


def test_rows_from_every_kind_of_place(tmp_path):
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict(train=table).save_to_disk(str(tmp_path / "dict"))
    table.to_parquet(str(tmp_path / "rows.parquet"))
    (tmp_path / "parts" / "b").mkdir(parents=True)
    (tmp_path / "parts" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:3]))
    datasets.Dataset.from_list(ROWS[3:]).to_parquet(str(tmp_path / "parts" / "b" / "1.parquet"))
    for name in ("saved", "dict", "rows.parquet", "parts", "parts/a.jsonl"):
        assert load_rows(tmp_path / name) == (ROWS[:3] if name == "parts/a.jsonl" else ROWS)
    with pytest.raises(BadInput, match="has the splits train, not 'test'"):
        load_rows(tmp_path / "dict", split="test")


def test_places_without_rows(tmp_path, monkeypatch):
    (tmp_path / "x.csv").write_text("a")
    (tmp_path / "x.parquet").write_text("a")
    for source, message in [
        (tmp_path / "x.csv", "ends in '.csv'"),
        (tmp_path / "x.parquet", "is not Parquet"),
        ("no/such-data", "neither a file, a folder nor a hub data set"),
    ]:
        with pytest.raises(BadInput, match=message):
            load_rows(source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no file that ends in"):
        load_rows(tmp_path / "empty")
    datasets.Dataset.from_list(ROWS).select([]).to_parquet(str(tmp_path / "none.parquet"))
    with pytest.raises(BadInput, match="holds no rows"):
        load_rows(tmp_path / "none.parquet")


def test_hub_data_set_is_read_through_datasets(monkeypatch):
    asked = {}

    def load_dataset(name, subset, split):
        asked.update(name=name, subset=subset, split=split)
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_rows("simplescaling/s1K", split="test", subset="main") == ROWS
    assert asked == {"name": "simplescaling/s1K", "subset": "main", "split": "test"}
