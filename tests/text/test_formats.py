"""Formats of training rows: each as people keep it, all of them to the same tokens, and nothing left out in silence."""

import copy
import pathlib
import re

import numpy as np
import pytest
from format_cases import ASK, CHAT, SAID, alike, in_loss
from hypothesis import given, settings
from hypothesis import strategies as st

from s1jax.text import formats
from s1jax.text.formats import FORMATS, QUESTIONS, format_of
from s1jax.text.render import Row, render_row
from s1jax.text.tokens import PRESETS, Tokenizer
from s1jax.train.data import within_block
from s1jax.train.packing import fill, loss_weights

S1, TAGS = PRESETS["s1"], PRESETS["think_tags"]
DOCUMENT = pathlib.Path(__file__).parent.parent.parent / "docs" / "formats.md"
ASSISTANT = re.compile(r"(?<=<\|im_start\|>assistant\n).*?<\|im_end\|>\n", re.DOTALL)


@pytest.fixture(scope="module")
def qwen(qwen_files) -> Tokenizer:
    return Tokenizer.load(qwen_files)


# ---- the document


@pytest.mark.parametrize(("name", "table"), [("formats", formats.table), ("questions", formats.question_table)])
def test_the_document_has_the_table_of_the_code(name, table):
    _, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    assert rest.partition("<!-- end -->")[0] == table(), f"put s1jax.text.formats' table of {name} into {DOCUMENT}"


@pytest.mark.parametrize("name", FORMATS)
def test_the_examples_of_the_document_are_read(name, qwen):
    example = FORMATS[name].example
    row = render_row(example, qwen, S1, format=name)
    assert format_of(example, "row") == name and row.loss_tokens > 0
    assert "1+1" in qwen.decode(row.ids[: row.prompt_length]) and "2" in qwen.decode(row.ids[row.prompt_length :])


def test_every_column_of_the_document_is_named(qwen):
    text = DOCUMENT.read_text(encoding="utf-8")
    for each in FORMATS.values():
        for names in (*each.columns, *each.optional):
            assert all(f"`{name}`" in text for name in names)
    assert all(f"| `{name}` |" in text for name in QUESTIONS)


# ---- one example, every format


@pytest.mark.parametrize("name", alike())
@pytest.mark.parametrize("preset", ["s1", "think_tags"])
def test_the_same_example_is_the_same_row_in_every_format(qwen, name, preset):
    if name == "text" and preset != "s1":
        return  # rendered in s1's headers already
    expected = render_row(alike()["trace"], qwen, PRESETS[preset])
    source = {"extra": 1, "source": "x", **dict(reversed(alike()[name].items()))}
    before = copy.deepcopy(source)
    assert render_row(source, qwen, PRESETS[preset]) == expected and source == before
    assert in_loss(expected, qwen) == [qwen.decode(expected.ids[expected.prompt_length :])]


def test_rows_without_thinking_are_put_as_they_are(qwen):
    rows = [
        {"messages": [ASK, {"role": "ASSISTANT", "content": " 7\n", "reasoning_content": None, "name": "x"}]},
        {"conversations": [{"from": "human", "value": "q?"}, {"from": "gpt", "value": "7"}]},
        {"prompt": "q?", "completion": " 7"},
        {"prompt": "q?", "response": "7"},
        {"instruction": "q?", "output": "7"},
        {"instruction": "q?", "response": "7", "context": None},
    ]
    body = qwen.chat_text([ASK, {"role": "assistant", "content": "7"}], generation_prompt=False)
    for source in rows:
        row = render_row(source, qwen, S1)
        assert row.ids == tuple(qwen.encode_markup(body)) and in_loss(row, qwen) == ["7<|im_end|>\n"]


@pytest.mark.parametrize(
    ("preset", "block"), [("s1", "<|im_start|>answer\n"), ("think_tags", "<think>\n\n</think>\n\n")]
)
@pytest.mark.parametrize("content", ["<think>\n\n</think>\n\n7", "<think></think>7", "<think> </think>\n7"])
def test_an_empty_block_is_what_a_prompt_without_thinking_has(qwen, preset, block, content):
    from s1jax.control.budget.config import BudgetConfig, header

    row = render_row({"messages": [ASK, {"role": "assistant", "content": content}]}, qwen, PRESETS[preset])
    assert in_loss(row, qwen) == [f"{block}7<|im_end|>\n"]
    asked = header(BudgetConfig(preset=preset, thinking=False), qwen)  # type: ignore[arg-type]
    assert row.ids[row.prompt_length :][: len(asked)] == asked or preset == "think_tags"


def test_a_template_that_opens_thinking_gets_it_closed(qwen_files):
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    tokenizer = Tokenizer.load(qwen_files, chat_template=template)
    chat = [ASK, {"role": "assistant", "content": "<think>a</think>b"}, ASK, {"role": "assistant", "content": "c"}]
    row = render_row({"messages": chat}, tokenizer, TAGS, train_on="all", answer_prefix=None)
    assert in_loss(row, tokenizer) == ["<think>\na\n</think>\n\nb<|im_end|>\n", "\n</think>\n\nc<|im_end|>\n"]
    assert tokenizer.decode(row.ids).count("<think>") == 2


# ---- several turns

NAMES = {"user": "human", "assistant": "gpt", "system": "system"}


def many() -> dict[str, dict]:
    shared = [{"from": NAMES[turn["role"]], "value": turn["content"]} for turn in CHAT]
    texts = [turn["content"] for turn in CHAT]
    return {
        "messages": {"messages": CHAT},
        "sharegpt": {"conversations": shared},
        "system beside it": {"system": "Be brief.", "conversation": shared[1:]},
        "conversational": {"prompt": CHAT[:-1], "completion": CHAT[-1:]},
        "alpaca": {
            "history": [texts[1:3], texts[3:5]],
            "system": "Be brief.",
            "instruction": texts[5],
            "output": texts[6],
        },
    }


@pytest.mark.parametrize("name", many())
def test_chats_train_on_the_last_answer_or_on_all(qwen, name):
    last, whole = (render_row(many()[name], qwen, S1, train_on=which) for which in ("last", "all"))  # type: ignore
    assert last.ids == whole.ids, "what is in the loss changes no token"
    assert in_loss(last, qwen) == SAID[-1:] and in_loss(whole, qwen) == SAID
    filled = iter(SAID)
    chat = [
        {**turn, "content": next(filled).removesuffix("<|im_end|>\n")} if turn["role"] == "assistant" else turn
        for turn in CHAT
    ]
    body = qwen.chat_text(chat, generation_prompt=False)
    assert qwen.decode(last.ids) == body
    assert last.ids == tuple(qwen.encode_markup(body)), "as the template's own text is encoded"
    prompt = last.ids[: last.prompt_length]
    assert prompt == tuple(qwen.encode_markup(qwen.chat_text(chat[:-1], generation_prompt=True)))
    assert render_row({"text": body}, qwen, S1, train_on="all").ids == whole.ids
    assert in_loss(render_row({"text": body}, qwen, S1, train_on="all"), qwen) == SAID
    assert in_loss(render_row({"text": body}, qwen, S1), qwen) == SAID[-1:]


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Co"]), min_size=1, max_size=12).filter(
    lambda text: bool(text.strip()) and "think" not in text
)
exchange = st.tuples(words, st.none() | words, words)


@settings(deadline=None, max_examples=40)
@given(st.none() | words, st.lists(exchange, min_size=1, max_size=4), st.sampled_from(["messages", "conversations"]))
def test_no_turn_is_left_out_whatever_it_says(qwen, system, exchanges, column):
    """Against the template's own text of the whole chat, and against a pattern that finds what assistants say."""
    rows, chat = [], []
    if system is not None:
        rows.append({"role": "system", "content": system})
        chat.append(rows[0])
    for asked, thought, answered in exchanges:
        block = "" if thought is None else f"<think>\n{thought}\n</think>\n\n"
        shown = "" if thought is None else f"<think>\n{thought.strip()}\n</think>\n\n"
        rows += [{"role": "user", "content": asked}, {"role": "assistant", "content": block + answered}]
        chat += [rows[-2], {"role": "assistant", "content": shown + answered.strip()}]
    if column == "conversations":
        rows = [{"from": NAMES[turn["role"]], "value": turn["content"]} for turn in rows]
    body = qwen.chat_text(chat, generation_prompt=False)
    row = render_row({column: rows}, qwen, TAGS, train_on="all", answer_prefix=None)
    assert qwen.decode(row.ids) == body
    assert in_loss(row, qwen) == ASSISTANT.findall(body)


def test_special_tokens_that_a_turn_spells_out_stay_text(qwen):
    typed = "a<|im_end|>\n<|im_start|>assistant\nb"
    chat = [
        *({"role": "user", "content": typed}, {"role": "assistant", "content": f"one {typed}"}),
        *({"role": "user", "content": typed}, {"role": "assistant", "content": f"two {typed}"}),
    ]
    row = render_row({"messages": chat}, qwen, S1, train_on="all")
    assert in_loss(row, qwen) == [f"one {typed}<|im_end|>\n", f"two {typed}<|im_end|>\n"]
    assert sum(id == qwen.added["<|im_end|>"] for id in row.ids) == 5  # the template's: system and four turns


def test_masked_spans_are_cut_with_their_row():
    row = Row("a", tuple(range(20)), 3, ((5, 9), (12, 18)))
    assert row.loss_tokens == 7
    assert [row.cut(n).masked for n in (20, 15, 12, 7, 5)] == [
        ((5, 9), (12, 18)),
        ((5, 9), (12, 15)),
        ((5, 9),),
        ((5, 7),),
        (),
    ]
    assert within_block([row], 15, "keep").rows[0].loss_tokens == 5
    arrays = fill([row, row], [[0, 1]], 40, loss_weights([row, row], "example"))
    trained = [*range(3, 5), *range(9, 12), *range(18, 20)]
    for segment in (1, 2):
        at = (arrays.segments[0] == segment) & (arrays.weights[0] > 0)
        assert arrays.targets[0][at].tolist() == trained
    np.testing.assert_allclose(arrays.weights.sum(), 1, rtol=1e-6)
