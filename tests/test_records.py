"""JSONL in and out: what was finished stays, what is malformed is named."""

import dataclasses
import json
import pickle

import pytest

from s1jax import records
from s1jax.config import BadInput
from s1jax.records import (
    Completion,
    JsonlWriter,
    Question,
    Sample,
    question_id,
    read_jsonl,
    to_completion,
    to_row,
    unique,
    write_json,
    write_jsonl,
)

COUNTS = {"n_ignored": 0, "reopened": False, "loop_at": None}
COMPLETION = Completion(
    "a", 0, 1, (1, 2), (3, 4), (False, True), 1, 2, 0, 2, "budget", "stop", "t", (0.5, 1), extra=COUNTS
)


def test_question_id_is_upstreams_hash():
    assert question_id("abc") == "ba7816bf8f01cfea"  # sha256("abc")[:16]
    assert question_id(" abc\n") == "0e876e95f5e8a2d8"  # as it is: printf ' abc\\n' | sha256sum


def test_writer_appends_and_reader_reads(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    with JsonlWriter(path) as writer:
        writer.write(COMPLETION)
        assert len(path.read_text().splitlines()) == 1  # on disk before the next is written
        writer.write({"id": "ü"})
    rows = read_jsonl(path)
    assert to_completion(rows[0]) == COMPLETION and rows[1] == {"id": "ü"}


def test_files_are_made_to_be_read(tmp_path):
    """Letters stand as they are in all three; of a single object each key has a line, and folders are made."""
    row = {"id": "ü", "text": "答"}
    with JsonlWriter(tmp_path / "a" / "one.jsonl") as writer:
        writer.write(row)
    write_jsonl(tmp_path / "b" / "all.jsonl", [row])
    write_json(tmp_path / "c" / "data.json", row)
    assert (tmp_path / "a" / "one.jsonl").read_text("utf-8") == '{"id": "ü", "text": "答"}\n'
    assert (tmp_path / "b" / "all.jsonl").read_bytes() == (tmp_path / "a" / "one.jsonl").read_bytes()
    assert (tmp_path / "c" / "data.json").read_text("utf-8") == '{\n "id": "ü",\n "text": "答"\n}\n'


def test_torn_last_line_is_dropped_and_the_rest_kept(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1}\n{"id": 2}\n{"id"')
    with JsonlWriter(path) as writer:
        writer.write({"id": 3})
    assert [row["id"] for row in read_jsonl(path)] == [1, 2, 3]


@pytest.mark.parametrize(
    "content, says",
    [("", "is empty"), ("\n \n", "is empty"), ('{"a": 1}\n{"a"\n', ":2 is not JSON"), ("[1]\n", ":1 is a JSON list")],
)
def test_malformed_files_are_named(tmp_path, content, says):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(BadInput, match=says):
        read_jsonl(path)
    assert path.read_text() == content


@pytest.mark.parametrize(
    "content, says",
    [
        (b'{"a": "caf\xe9"}', ":1 cannot be read .*utf-8"),
        (b'{"a": ' + b"1" * 5000 + b"}", ":1 cannot be read .*digits"),
        (b"[" * 100_000, ":1 cannot be read .*recursion"),
        (b'{"a": "\\ud800"}', ":1 cannot be read .*surrogates"),
        (b'{"a": "\\uDFFF"}', ":1 cannot be read .*surrogates"),
    ],
)
def test_lines_that_python_cannot_hold_are_named(tmp_path, content, says):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content + b"\n")
    with pytest.raises(BadInput, match=says) as error:
        read_jsonl(path)
    assert "\n" not in str(error.value)
    path.write_bytes(b'{"a": "\\ud83d\\ude00"}\n')
    assert read_jsonl(path) == [{"a": "\U0001f600"}]


def test_missing_file(tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        read_jsonl(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    assert read_jsonl(tmp_path / "empty.jsonl", allow_empty=True) == []


def test_whole_file_write_is_all_or_nothing(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"a": 1}])

    def broken():
        yield {"a": 2}
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_jsonl(path, broken())
    assert path.read_text() == json.dumps({"a": 1}) + "\n"


def test_duplicate_ids_are_refused():
    rows = [Question("a", "x"), Question("b", "y"), Question("a", "z")]
    with pytest.raises(BadInput, match="id 'a' stands in rows 1 and 3"):
        list(unique(rows, "pool.jsonl"))


def test_unknown_key_of_a_completion_is_named():
    with pytest.raises(BadInput, match="nonsense is .1., which is none of a control's counts"):
        to_completion({"id": "a", "nonsense": [1]})
    with pytest.raises(BadInput, match="key 'sample' is missing"):
        to_completion({"id": "a"})
    with pytest.raises(BadInput, match="format is 's1jax.completion/1', this version reads 's1jax.sample/1'"):
        to_completion(dataclasses.asdict(COMPLETION), Sample)
    with pytest.raises(BadInput, match="f:1 is a JSON list, not a row"):
        to_completion([1], where="f:1 ")  # type: ignore[arg-type]


def test_what_a_control_adds_stands_at_the_top_level_and_reads_like_a_field(tmp_path):
    row = to_row(COMPLETION)
    assert row["n_ignored"] == 0 and row["reopened"] is False and not {"extra", "error"} & set(row)
    assert COMPLETION.n_ignored == 0 and pickle.loads(pickle.dumps(COMPLETION)) == COMPLETION
    with pytest.raises(AttributeError, match="Completion has no 'n_wait'; its control adds .'loop_at', 'n_ignored'"):
        _ = COMPLETION.n_wait
    for name, value in (("notes", ["a"]), ("extra", {}), ("error", "x")):
        with pytest.raises(BadInput, match=f"{name} is .*, which is none of a control's counts"):
            to_completion({**row, name: value})


@pytest.mark.parametrize("reason", ["cancelled", "error"])
def test_a_completion_that_did_not_finish_is_never_written(tmp_path, reason):
    unfinished = dataclasses.replace(COMPLETION, finish_reason=reason)
    with JsonlWriter(tmp_path / "rows.jsonl") as writer, pytest.raises(ValueError, match=f"is {reason}, not finished"):
        writer.write(unfinished)
    assert (tmp_path / "rows.jsonl").read_text() == ""


@pytest.mark.parametrize("tail", [1, 3, 7, 2**20])
@pytest.mark.parametrize("text", ["", "{}", "{}\n", "{}\n{", '{}\n{}\n{"a": 1', "{}\n\n", "\n"])
def test_a_torn_line_goes_however_far_its_beginning_is(tmp_path, monkeypatch, text, tail):
    """The file is read from its end, a piece at a time."""
    monkeypatch.setattr(records, "TAIL_BYTES", tail)
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    records.JsonlWriter(path).close()
    assert path.read_text() == text[: text.rfind("\n") + 1]
