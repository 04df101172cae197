"""Prompts of a JSONL file: what a row may say, and that everything else is named."""

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
