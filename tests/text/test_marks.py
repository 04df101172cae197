"""What a message spells out, hidden from the template and put back; and sizes of vocabularies. No shared data."""

import json

import pytest
import tokenizers

from s1jax.config import BadInput
from s1jax.text.chat import Marks, mark_messages, pattern_of, render_template, system_turn
from s1jax.text.tokens import Tokenizer, byte_tokenizer

A, B = "<a>", "<b>"


def test_the_longest_of_texts_that_begin_alike_is_found():
    pattern = pattern_of(["<|", "<|im|>", "", "x", "<|im"])
    assert pattern.findall("<|im|> <|im <| x") == ["<|im|>", "<|im", "<|", "x"]
    assert pattern_of([]).search("anything") is None and pattern_of(["a.c"]).search("abc") is None


def test_a_mark_is_a_character_that_the_text_does_not_hold():
    first = Marks("")
    assert first.mark == "\ue000" and Marks("\ue000 \ue002").mark == "\ue001"
    text = f"say {A}"
    marks = Marks("\ue0000\ue000" + text)
    hidden = marks.hide(f"\ue0000\ue000 {text}", pattern_of([A]))
    assert A not in hidden and marks.show(hidden) == f"\ue0000\ue000 {text}"


def test_everything_in_plain_data_is_hidden_and_the_rest_left():
    marks = Marks("")
    hidden = marks.hide({f"k{A}": [A, (B, 3, None, True)], "x": {"y": f"{B}{A}"}}, pattern_of([A, B]))
    assert marks.hidden == [A, A, B, B, A]
    assert marks.show(json.dumps(hidden, ensure_ascii=False)) == json.dumps(
        {f"k{A}": [A, [B, 3, None, True]], "x": {"y": f"{B}{A}"}}
    )


def render(alter):
    """A template that writes role and content, after `alter` has had its way with the content."""
    return lambda messages: "".join(f"[{message['role']}]{alter(message['content'])}" for message in messages)


ADDED = pattern_of([A, B])


def test_a_faithful_template_sees_no_added_token():
    seen = []
    rows = [{"role": "user", "content": f"x {A}{B}"}, {"role": "user", "content": A}]
    text, marks = mark_messages(render(lambda c: seen.append(c) or c), rows, ADDED, lambda *_: False)
    assert A not in text and B not in text and marks.show(text) == f"[user]x {A}{B}[user]{A}"
    assert marks.hidden == [A, B, A]


def test_a_template_may_read_what_it_is_allowed_to_and_all_of_it():
    def only_a(message, text):
        return message["role"] == "assistant" and text == A

    reads = render(lambda content: content.replace(A, "").replace(B, ""))
    said = {"role": "assistant", "content": f"1{A}2"}
    text, marks = mark_messages(reads, [said, {"role": "user", "content": "q"}], ADDED, only_a)
    assert text == "[assistant]12[user]q" and marks.hidden == []
    with pytest.raises(BadInput, match="the chat template alters '<b>' in message 0; remove"):
        mark_messages(reads, [{"role": "assistant", "content": f"1{A}2{B}"}], ADDED, only_a)
    with pytest.raises(BadInput, match="template alters '<a>' in message 1; remove that text from the message"):
        mark_messages(reads, [said, {"role": "user", "content": A}], ADDED, lambda m, t: m["role"] == "assistant")


def test_what_is_read_stays_the_templates_and_the_rest_is_hidden():
    reads = render(lambda content: content.replace(A, "(read)"))
    text, marks = mark_messages(reads, [{"role": "assistant", "content": f"{A} {B}"}], ADDED, lambda m, t: t == A)
    assert marks.hidden == [B] and marks.show(text) == "[assistant](read) <b>" and B not in text


def test_a_template_that_alters_only_together_is_refused():
    alters = render(lambda content: content.replace(A + B, B + A))
    with pytest.raises(BadInput, match="'<a>' in message 0, '<b>' in message 0"):
        mark_messages(alters, [{"role": "user", "content": A + B}], ADDED, lambda *_: False)


def test_templates_that_refuse_or_break():
    for template in ("{{ raise_exception('no system turn') }}", "{% if %}", "{{ messages[0]['content'] + 1 }}"):
        with pytest.raises(BadInput, match="the chat template refuses these messages: .*; change the messages"):
            render_template(template, [{"role": "user", "content": "x"}])
    assert render_template("{{ a }}{{ messages[0]['b'] }}", [{"b": 2}], a=1) == "12"
    assert system_turn(None) == [] and system_turn("") == [{"role": "system", "content": ""}]


def test_a_vocabulary_with_a_hole_is_as_large_as_its_last_token():
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "c": 7}, []))
    backend.decoder = tokenizers.decoders.ByteLevel()
    made = Tokenizer(backend)
    assert made.size == 8 and made.token_bytes() == [b"a", b"b", b"", b"", b"", b"", b"", b"c"]
    assert made.decode([0, 3, 7]) == "ac" and made.decode([8, 1, -1]) == "\ufffdb\ufffd"
    assert Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE())).size == 0


def test_the_byte_tokenizer():
    made = byte_tokenizer()
    assert made.size == 259 and made.eos_ids == {made.added["<|im_end|>"]} == {258}
    text = "Größe \U0001f600<|im_end|>\n"
    assert len(made.encode(text)) == len(text.encode()) and made.decode(made.encode(text)) == text
    assert made.encode_markup(text)[-2:] == [258, *made.encode("\n")]
    assert made.encode("!az~\u00e9 \n") == [0, 64, 89, 93, 127, 102, 220, 198], "bytes in the order of their spellings"
    with pytest.raises(BadInput, match="tokenizer made in memory has no chat template"):
        made.chat_text([], generation_prompt=True)


def test_spans_are_encoded_whole_between_tokens_of_ours():
    """Plain text that spells a token stays text; what lies on both sides of a border of parts is one text."""
    made = byte_tokenizer()
    end, start = made.added["<|im_end|>"], made.added["<|im_start|>"]
    parts = [("<|im_start|>", True), ("a<|im_end|>", False), ("b", True), ("<|im_end|>", True), ("c", False)]
    ids = [start, *made.encode("a<|im_end|>b"), end, *made.encode("c")]
    assert made.encode_parts(parts) == ids
    assert made.encode_parts([("x", True)]) == made.encode("x") and made.encode_parts([]) == []
