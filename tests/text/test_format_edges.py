"""Rows that cannot be read are named with what is accepted; files of every kind give the same examples."""

import json
import pathlib

import datasets
import pytest
from format_cases import ASK, CHAT, SAID, THOUGHT, alike, in_loss

from s1jax.config import BadInput
from s1jax.tables import load_rows
from s1jax.text.formats import FORMATS, format_of
from s1jax.text.render import render_row
from s1jax.text.tokens import PRESETS, Tokenizer
from s1jax.text.turns import ChatTurn, read_turns, split_thinking
from s1jax.train.data import DataConfig, load_examples

S1 = PRESETS["s1"]


@pytest.fixture(scope="module")
def qwen(qwen_files) -> Tokenizer:
    return Tokenizer.load(qwen_files)


# ---- what is refused, by name

CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}


def chat(*turns: dict) -> dict:
    return {"messages": [ASK, *turns]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"foo": "x", "bar": 1, "baz": None, "qux": [1], "is": True, "o": {}}, r"foo \(text\), bar \(number\), baz"),
        ({}, "has the columns none; a training row has those of one format"),
        ({"question": "q", "answer": "7"}, "trace lacks thinking or thinking_trajectories"),
        ({"prompt": "q"}, "prompt_completion lacks completion or response"),
        ({"instruction": "q", "output": None}, "alpaca lacks output or response"),
        ({"messages": []}, "messages must be a list of objects with role and content, at least one"),
        ({"messages": "hello"}, "messages must be a list of objects"),
        ({"messages": ["hello"]}, "messages must be a list of objects"),
        ({"messages": [{"content": "x"}]}, r"turn 1 has role None \(its fields: content\); use one of system, dev"),
        (chat({"role": "critic", "content": "x"}), "turn 2 has role 'critic'"),
        (chat({"role": "tool", "content": "4"}), r"turn 2 is a tool's \(role 'tool'\); turns of tools are not read"),
        ({"conversations": [{"from": "observation", "value": "4"}]}, "turn 1 is a tool's"),
        (chat(CALL), r"turn 2 \(assistant\) has tool_calls; calls of tools are not read"),
        ({**chat({"role": "assistant", "content": "7"}), "tools": [{"name": "add"}]}, "has tools; what they say would"),
        (chat({"role": "assistant", "content": None}), "content is None; give texts, or a list of parts of text"),
        (chat({"role": "assistant", "content": 7}), "content is 7; give texts"),
        (chat({"role": "assistant", "content": []}), r"content is \[\]; give texts"),
        (chat({"role": "assistant", "content": [{"type": "image_url"}]}), "a part of type 'image_url'"),
        (chat({"role": "assistant", "content": [{"type": "text"}]}), "a part of type 'text'"),
        (chat({"role": "assistant", "content": " "}), r"turn 2 \(assistant\) has no answer; fill it"),
        (chat({"role": "assistant", "content": "<think>a</think> "}), "has no answer behind its thinking; fill it"),
        (chat({"role": "assistant", "content": None, "reasoning": "a"}), "has no answer behind its thinking; fill it"),
        (chat({"role": "assistant", "content": "7", "reasoning": ["a"]}), "reasoning is list, not text"),
        (chat({"role": "assistant", "content": "7", "reasoning": "a", "thinking": "b"}), "thinking in several fields"),
        (chat({"role": "assistant", "content": THOUGHT, "thinking": "b"}), "thinking in its content and in a field"),
        (chat({"role": "assistant", "content": "<think>a 7"}), "opens <think> and never ends it with </think>"),
        (chat({"role": "assistant", "content": "<think>a</think>b</think>c"}), "has a second </think>"),
        (chat({"role": "user", "content": "x", "thinking": "b"}), r"turn 2 \(user\) has thinking; only an assistant"),
        (chat({"role": "user", "content": ""}), r"turn 2 \(user\) is empty"),
        (chat({"role": "assistant", "content": "7"}, ASK), "the last turn is the user's"),
        ({"messages": [{"role": "assistant", "content": "7"}]}, "the only one, so nothing asks for it"),
        ({"prompt": "", "completion": "7"}, r"prompt turn 1 \(user\) is empty"),
        ({"prompt": 3, "completion": "7"}, "prompt must be a list of objects"),
        ({"instruction": " ", "output": "7"}, "column 'instruction' is empty"),
        ({"instruction": 1, "output": "7"}, "column 'instruction' is int, not text"),
        ({"instruction": "q", "output": " "}, "column 'output' .assistant. has no answer"),
        ({"instruction": "q", "output": "7", "history": ["a"]}, r"column 'history' is \['a'\]; give a list of \["),
        ({"text": 5}, "column 'text' is int, not text"),
        ({"system": 5, **chat({"role": "assistant", "content": "7"})}, "column 'system' is int, not text"),
        (
            {"system": "a", "messages": [{"role": "system", "content": "b"}, ASK, CHAT[4]]},
            "a column 'system' and a system turn of its own",
        ),
        (
            {"text": "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
             "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"},
            "answer 2 of column 'text' does not end with",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(qwen, row, message):
    with pytest.raises(BadInput, match=message) as error:
        render_row(row, qwen, S1, where="rows.jsonl row 3")
    assert "rows.jsonl row 3" in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_row_is_told_what_is_accepted():
    with pytest.raises(BadInput) as error:
        format_of({"foo": "x"}, "rows.jsonl row 1")
    for name, each in FORMATS.items():
        assert f"{name}: " in str(error.value) and all(names[0] in str(error.value) for names in each.columns)
    with pytest.raises(BadInput, match="is a list, not an object with columns"):
        format_of([], "row 1")  # type: ignore[arg-type]


def test_a_template_that_loses_turns_is_refused(qwen_files):
    template = (
        "{% for m in messages[-2:] %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = Tokenizer.load(qwen_files, chat_template=template)
    with pytest.raises(BadInput, match="does not render its 3 assistant turns one after another|does not go on from"):
        render_row({"messages": CHAT}, tokenizer, S1)


def test_a_content_that_only_speaks_of_tags_is_no_thinking():
    text = "Put <think> and </think> around it."
    assert split_thinking(text, "row") == (None, text)
    assert read_turns([ASK, {"role": "model", "content": text}], "row")[1] == ChatTurn("assistant", text)


# ---- files and configs


def write(path: pathlib.Path, rows: list[dict]) -> str:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.name == "bom.jsonl":
        path.write_bytes(b"\xef\xbb\xbf" + lines.replace("\n", "\r\n").encode())
    elif path.name == "list.json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.name == "bom.json":
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(rows).encode())
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(str(path))
    elif path.suffix:
        path.write_text(lines)
    else:
        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return str(path)


PLACES = ("rows.jsonl", "bom.jsonl", "lines.json", "list.json", "bom.json", "rows.parquet", "saved")


@pytest.mark.parametrize("name", PLACES)
def test_every_kind_of_file_gives_the_same_examples(qwen, tmp_path, name):
    """Parquet and saved data sets put null where a row lacks what another has."""
    rows = [{"messages": CHAT[1:3]}, {"messages": [ASK, {"role": "assistant", "content": "7", "reasoning": "m"}]}]
    source = write(tmp_path / name, rows)
    found = load_examples(DataConfig(rows=source), qwen)
    assert found.rows == tuple(render_row(row, qwen, S1) for row in rows)


def test_formats_may_be_mixed_and_files_too(qwen, tmp_path):
    sources = tuple(write(tmp_path / f"{i}.jsonl", [row, row]) for i, row in enumerate(alike().values()))
    found = load_examples(DataConfig(rows=sources), qwen)
    assert len(found.rows) == 2 * len(alike()) and len(set(found.rows)) == 1
    assert found.describe().startswith(f"{len(found.rows)} rows, ")


def test_a_format_may_be_named(qwen, tmp_path):
    both = {**alike()["trace"], "messages": CHAT}
    source = write(tmp_path / "rows.jsonl", [both])
    assert "one?" not in qwen.decode(load_examples(DataConfig(rows=source), qwen).rows[0].ids)
    chosen = load_examples(DataConfig(rows=source, format="messages", train_on="all"), qwen).rows
    assert in_loss(chosen[0], qwen) == SAID
    with pytest.raises(BadInput, match=r"row 1 has the columns .*\(alpaca: instruction \+ output or response\)"):
        load_examples(DataConfig(rows=source, format="alpaca"), qwen)
    with pytest.raises(BadInput, match="data.format='chatml' is not known; use one of trace, messages"):
        load_examples(DataConfig(rows=source, format="chatml"), qwen)
    with pytest.raises(BadInput, match="data.teacher='claude' is not known; use one of '', 'deepseek', 'gemini'"):
        load_examples(DataConfig(rows=source, teacher="claude"), qwen)


def test_json_that_holds_no_rows_is_named(tmp_path):
    for text, message in [
        ("[1, 2]", "holds JSON that is no list of objects"),
        ('"text"', "holds JSON that is no list of objects"),
        ('[{"a": "\\ud800"}]', "cannot be read"),
        ("[{]", "bad.json:1 is not JSON"),
        ("[" * 100_000, "bad.json:1 cannot be read"),
    ]:
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(BadInput, match=message):
            load_rows(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text('{\n "a": 1\n}')
    assert load_rows(tmp_path / "bad.json") == [{"a": 1}]
    (tmp_path / "rows.jsonl").write_text('{"b": 2}\n')
    assert load_rows(tmp_path) == [{"b": 2}], "a folder's .json beside rows is metadata"
