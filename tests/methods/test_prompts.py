"""Prompts of a JSONL file: what a row may say, and that everything else is named."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from s1jax import records
from s1jax.config import BadInput
from s1jax.control.budget.config import BudgetConfig
from s1jax.methods import prompts


def test_prompts_of_a_file(tmp_path):
    path = tmp_path / "prompts.jsonl"
    chat = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "I"}]
    rows = [
        {"question": "a?", "thinking_token_budget": 5, "temperature": 0.5, "source": "passed over"},
        {"id": 7, "messages": chat, "system": "be brief", "control": {"thinking_n_ignore": 2}, "seed": 3},
        {"question": "b?", "answer": 2, "choices": ["x", "y"]},
    ]
    records.write_jsonl(path, rows)
    first, second, third = prompts.read_prompts(str(path), "you are s1")
    assert first.id == records.question_id("a?") and first.control == {"thinking_token_budget": 5}
    assert first.sampling == {"temperature": 0.5} and first.messages[0] == {"role": "system", "content": "you are s1"}
    assert (second.id, second.seed, second.control) == ("7", 3, {"thinking_n_ignore": 2})
    assert second.messages == ({"role": "system", "content": "be brief"}, *chat)
    assert third.answer == "2" and third.choices == ("x", "y")
    changed = prompts.override(BudgetConfig(), first.control, "x")
    assert changed == BudgetConfig(thinking_token_budget=5)


@pytest.mark.parametrize(
    "row, message",
    [
        (
            {"question": "a", "thinking_tokn_budget": 4},
            "field 'thinking_tokn_budget'; the nearest known one is 'thinking_tok",
        ),
        ({"answer": "a"}, "neither of question and messages"),
        ({"question": "a", "messages": []}, "both of question and messages"),
        ({"question": ""}, "question is ''"),
        ({"messages": []}, "messages must be a list of objects"),
        ({"messages": [{"role": "user"}]}, "messages must be a list of objects"),
        ({"messages": [{"role": "user", "content": None}]}, "role 'user' and content None; give texts"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, r"content \['x'\]; give texts"),
        ({"question": " "}, "question is ' '"),
        ({"question": None}, "neither of question and messages"),
        ({"question": "a", "control": 1}, r"control is 1 \(int\); it must be an object"),
        ({"question": "a", "sampling": [1]}, r"sampling is \[1\] \(list\); it must be an object"),
        ({"question": "a", "system": 5}, r"system is 5 \(int\); it must be a text"),
        ({"question": "a", "seed": "1"}, r"seed is '1' \(str\); it must be a whole number"),
        ({"question": "a", "seed": True}, r"seed is True \(bool\); it must be a whole number"),
        ({"question": "a", "choices": "ab"}, r"choices is 'ab' \(str\); it must be a list"),
    ],
)
def test_bad_prompts_are_named(tmp_path, row, message):
    path = tmp_path / "prompts.jsonl"
    records.write_jsonl(path, [{"question": "fine"}, row])
    with pytest.raises(BadInput, match=f"prompts.jsonl row 2.*{message}"):
        prompts.read_prompts(str(path))


def test_nulls_are_as_if_they_were_not_there_but_for_overrides(tmp_path):
    rows = [{name: None for name in prompts.OWN} | {"question": text} for text in ("a?", "b?")]
    rows[1] |= {"question": None, "messages": [{"role": "user", "content": "c"}], "thinking_token_budget": None}
    path = tmp_path / "prompts.jsonl"
    records.write_jsonl(path, rows)
    first, second = prompts.read_prompts(str(path), "S")
    assert first == prompts.prompt_of({"question": "a?"}, "", "S") and second.messages[0]["content"] == "S"
    assert second.control == {"thinking_token_budget": None}


def test_wrong_type_of_an_override_is_named():
    with pytest.raises(BadInput, match="prompt 'x' thinking_token_budget"):
        prompts.override(BudgetConfig(), {"thinking_token_budget": "many"}, "prompt 'x'")


def test_a_question_may_be_a_prompt_or_a_chat_as_people_write_it():
    asked = prompts.prompt_of({"question": "q?"}, "row 1")
    parts = [{"type": "text", "text": "q"}, {"type": "text", "text": "?"}]
    for row in (
        {"prompt": "q?"},
        {"prompt": [{"role": "user", "content": "q?"}], "question": None},
        {"messages": [{"role": "user", "content": "q?"}]},
        {"messages": [{"from": "human", "value": "q?"}]},
        {"messages": [{"role": "user", "content": parts}]},
    ):
        assert prompts.prompt_of(row, "row 1") == asked
    begun = [{"role": "user", "content": "q?"}, {"from": "gpt", "value": "I"}]
    assert prompts.prompt_of({"messages": begun}, "row 1").messages[-1] == {"role": "assistant", "content": "I"}
    called = {"role": "assistant", "content": None, "tool_calls": [1]}
    assert prompts.prompt_of({"messages": [begun[0], called]}, "row 1").messages[-1] == called, "templates read it"
    with pytest.raises(BadInput, match="row 1 has both of question and prompt; give one"):
        prompts.prompt_of({"question": "a", "prompt": "b"}, "row 1")
    with pytest.raises(BadInput, match=r"nor a prompt \(it has answer\); give one"):
        prompts.prompt_of({"answer": "a"}, "row 1")
    with pytest.raises(BadInput, match="row 1: prompt is 5; give a text"):
        prompts.prompt_of({"prompt": 5}, "row 1")
    with pytest.raises(BadInput, match="row 1: messages turn 1 has a part of type 'image_url'"):
        prompts.prompt_of({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "row 1")


@pytest.mark.parametrize("name", ["p.jsonl", "bom.jsonl", "p.json", "p.parquet"])
def test_prompts_of_other_files(tmp_path, name):
    rows = [{"prompt": "a?"}, {"prompt": "b?"}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if name == "p.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
    else:
        (tmp_path / name).write_text(("\ufeff" if name == "bom.jsonl" else "") + text)
    assert [prompt.messages[-1]["content"] for prompt in prompts.read_prompts(str(tmp_path / name))] == ["a?", "b?"]


def test_equal_prompts_without_ids_are_told_apart(tmp_path):
    hash_of = records.question_id("a?")
    rows = [{"question": "a?"}, {"question": "a?"}, {"id": f"{hash_of}-2", "question": "a?"}, {"prompt": "a?"}]
    records.write_jsonl(tmp_path / "p.jsonl", rows)
    found = [prompt.id for prompt in prompts.read_prompts(str(tmp_path / "p.jsonl"))]
    assert found == [hash_of, f"{hash_of}-3", f"{hash_of}-2", f"{hash_of}-4"]
    records.write_jsonl(tmp_path / "p.jsonl", [{"id": "x", "question": "a?"}, {"id": "x", "question": "a?"}])
    with pytest.raises(BadInput, match="id 'x' stands in rows 1 and 2; ids must be unique"):
        prompts.read_prompts(str(tmp_path / "p.jsonl"))
