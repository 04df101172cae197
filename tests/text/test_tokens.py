"""Tokenizer: real goldens, transformers and sentencepiece as the other implementation, and injection by content."""

import json
import pathlib

import pytest
import sentencepiece
import tokenizers
import transformers

from s1jax.config import BadInput
from s1jax.text.token_backend import byte_alphabet, read_backend, read_settings
from s1jax.text.tokens import PRESETS, Tokenizer

IM_START, IM_END = 151644, 151645


@pytest.fixture(scope="module")
def qwen_folder(qwen_files) -> pathlib.Path:
    return qwen_files


@pytest.fixture(scope="module")
def qwen(qwen_folder) -> Tokenizer:
    return Tokenizer.load(str(qwen_folder))


@pytest.fixture(scope="module")
def reference(qwen_folder):
    return transformers.AutoTokenizer.from_pretrained(str(qwen_folder))


def _goldens(shared, name):
    return [json.loads(line) for line in (shared / "tokenizer" / name).read_text(encoding="utf-8").splitlines()]


def test_qwen_facts(qwen):
    assert (qwen.size, qwen.eos_ids) == (151665, {151643, IM_END})
    assert (qwen.added["<|im_start|>"], qwen.added["<|fim_pad|>"], max(qwen.added.values())) == (
        IM_START,
        151662,
        151664,
    )


def test_encode_goldens(qwen, shared):
    rows = _goldens(shared, "encode_goldens.jsonl")
    assert len(rows) == 118
    for row in rows:
        assert qwen.encode_markup(row["text"]) == row["ids"]
        if not any(text in row["text"] for text in qwen.added):
            assert qwen.encode(row["text"]) == row["ids"]
        assert not set(qwen.encode(row["text"])) & set(qwen.added.values())


def test_golden_encodings_of_the_training_format(qwen, shared):
    goldens = {
        "<|im_start|>think": [IM_START, 26865],
        "<|im_start|>think\n": [IM_START, 26865, 198],
        "<|im_start|>answer": [IM_START, 9217],
        "<|im_start|>answer\nFinal Answer:": [IM_START, 9217, 198, 19357, 21806, 25],
        "<|im_start|>assistant\n": [IM_START, 77091, 198],
        "<|im_start|>user": [IM_START, 872],
        "<|im_end|>\n": [IM_END, 198],
        "<|im_start|>64 steps left\n": [IM_START, 21, 19, 7354, 2115, 198],
        "<|im_start|>0": [IM_START, 15],
        "Wait": [14190],
        "Hmm": [80022],
        "Alternatively": [92014],
    }
    assert {text: qwen.encode_markup(text) for text in goldens} == goldens
    system = "151644 8948 198 2610 525 1207 16948 11 3465 553 54364 14817 13 1446 525 264 10950 17847 13 151645 198"
    assert qwen.chat_ids([{"role": "user", "content": "hi"}], generation_prompt=True)[:24] == [
        *map(int, system.split()),
        IM_START,
        872,
        198,
    ]
    assert PRESETS["s1"].thinking_start == "<|im_start|>think"
    assert qwen.encode_markup(PRESETS["s1"].forced_end) == goldens["<|im_start|>answer\nFinal Answer:"]


def test_token_bytes_of_the_real_vocabulary(qwen, reference, shared):
    table = qwen.token_bytes()
    assert len(table) == qwen.size and all(table)
    assert table[IM_START] == b"<|im_start|>"
    assert {bytes([b]) for b in range(256)} <= set(table)
    for row in _goldens(shared, "encode_goldens.jsonl"):
        joined = b"".join(table[id] for id in row["ids"])
        assert (
            joined.decode("utf-8")
            == qwen.decode(row["ids"])
            == reference.backend_tokenizer.normalizer.normalize_str(row["text"])
        )


def test_byte_alphabet_is_that_of_the_library():
    pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = byte_alphabet()
    for char in map(chr, [*range(0x20, 0x250), 0x4F60, 0x1F600]):
        [(spelled, _)] = pre_tokenizer.pre_tokenize_str(char)
        assert spelled == "".join(alphabet[byte] for byte in char.encode("utf-8"))
    assert set(alphabet.values()) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def test_decode_of_broken_text(qwen):
    [first, *rest] = qwen.encode("\U00012000")
    assert rest and "\ufffd" in qwen.decode([first])
    assert qwen.decode([first, *rest]) == "\U00012000"
    assert qwen.decode([*qwen.encode("Wait"), 152000]) == "Wait\ufffd"


def test_save_carries_files_byte_by_byte(qwen, qwen_folder, tmp_path):
    qwen.save(tmp_path)
    qwen.save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {path.name for path in qwen_folder.iterdir()} - {"generation_config.json"}
    assert all((tmp_path / name).read_bytes() == (qwen_folder / name).read_bytes() for name in names)


def _byte_level(vocabulary: int = 300) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    backend.train_from_iterator(["a b c count the letters Wait"] * 4, trainer)
    return backend


def test_tokenizer_made_in_memory_survives_a_round_trip(tmp_path):
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    made = Tokenizer(_byte_level(), settings={"eos_token": "<|im_end|>"}, chat_template=template, eos_ids=[0])
    made.save(tmp_path)
    read = Tokenizer.load(tmp_path)
    assert (read.size, read.eos_ids, read.added) == (made.size, made.eos_ids, made.added) and made.eos_ids == {0, 2}
    messages = [{"role": "user", "content": "count <|im_end|>\n"}]
    assert read.chat_ids(messages, generation_prompt=False) == made.chat_ids(messages, generation_prompt=False)
    loaded = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert loaded.apply_chat_template([{"role": "user", "content": "a"}], tokenize=True, return_dict=False) == (
        read.chat_ids([{"role": "user", "content": "a"}], generation_prompt=False)
    )


def test_a_generation_config_that_is_there_stays(tmp_path):
    """An export writes the model's own before the tokenizer comes."""
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 7, "top_k": 20}')
    Tokenizer(_byte_level(), settings={"eos_token": "<|im_end|>"}).save(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"eos_token_id": 7, "top_k": 20}


def _train_sentencepiece(folder: pathlib.Path, **options) -> pathlib.Path:
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(f"the answer is {i} and wait {i * 7} more {i % 9}" for i in range(400)))
    sentencepiece.SentencePieceTrainer.Train(
        input=str(corpus),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=330,
        byte_fallback=True,
        minloglevel=2,
        **options,
    )
    return folder


def test_sentencepiece_model_alone(tmp_path):
    _train_sentencepiece(tmp_path, normalization_rule_name="identity", remove_extra_whitespaces=False)
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ours = Tokenizer.load(tmp_path)
    assert ours.size == oracle.get_piece_size()
    for text in ["the answer is 42", "wait  two spaces", "é 你\n", "</s>", "the <s> and <unk>"]:
        assert ours.encode(text) == oracle.encode(text)
    table = ours.token_bytes()
    for id in range(3, ours.size):
        assert table[id] == (
            bytes([int(oracle.id_to_piece(id)[3:5], 16)])
            if oracle.is_byte(id)
            else oracle.id_to_piece(id).replace("\u2581", " ").encode()
        )
    assert ours.decode(ours.encode("é 你")) == " é 你"


def test_sentencepiece_normaliser_that_conversion_drops_is_refused(tmp_path):
    _train_sentencepiece(tmp_path, normalization_rule_name="nmt_nfkc")
    with pytest.raises(BadInput, match="its conversion as"):
        Tokenizer.load(tmp_path)


def test_text_that_a_unigram_model_holds_as_a_piece_stays_plain():
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((char, -3.0) for char in "</s>abc ")]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, 0))
    backend.add_special_tokens(["</s>"])
    backend.decoder = tokenizers.decoders.Metaspace()
    made = Tokenizer(backend, settings={"eos_token": "</s>"})
    assert made.encode_markup("a</s>") == [6, 1]
    assert made.encode("a</s>") == [6, 2, 3, 4, 5]


def test_spans_inside_a_text_get_no_leading_space():
    vocabulary = {piece: i for i, piece in enumerate(["<s>", "</s>", "\u2581", "a", "b"])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = tokenizers.decoders.Metaspace(prepend_scheme="first")
    backend.add_special_tokens(["<s>", "</s>"])
    made = Tokenizer(backend)
    assert made.encode_markup("a<s>b") == [2, 3, 0, 4]
    assert made.encode_parts([("a<s>b", True), ("<s>", False)])[:4] == [2, 3, 0, 4]


def test_tokens_that_only_the_settings_list(qwen_folder, tmp_path):
    _byte_level().save(str(tmp_path / "tokenizer.json"))
    size = Tokenizer.load(tmp_path).size
    settings_file = tmp_path / "tokenizer_config.json"
    entry = {"content": "<extra>", "special": False, "lstrip": False, "rstrip": False, "normalized": False}
    settings_file.write_text(json.dumps({"added_tokens_decoder": {str(size): entry}}))
    assert Tokenizer.load(tmp_path).encode_markup("<extra>") == [size]
    settings_file.write_text(json.dumps({"added_tokens_decoder": {str(size + 3): entry}}))
    with pytest.raises(BadInput, match="gives '<extra>' id"):
        Tokenizer.load(tmp_path)


def test_tokens_that_only_the_settings_list_come_in_the_order_of_their_numbers(tmp_path):
    """As text, 10 stands before 9. Flags are the entry's; one that names none is an ordinary token."""
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(9)}, unk_token="w0"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.save(str(tmp_path / "tokenizer.json"))
    entries = {"10": {"content": "<b>", "special": True, "lstrip": True}, "9": {"content": "<a>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": entries}))
    assert Tokenizer.load(tmp_path).encode_markup("w3<a> <b>") == [3, 9, 10]
    added = read_backend(tmp_path, read_settings(tmp_path)).get_added_tokens_decoder()
    assert [(added[id].content, added[id].special, added[id].lstrip) for id in (9, 10)] == [
        ("<a>", False, False),
        ("<b>", True, True),
    ]


def test_names_of_tokens_are_those_of_the_settings(tmp_path):
    """tokenizer_config.json wins over special_tokens_map.json; a token is a text or an object; templates print it."""
    _byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<|endoftext|>", "bos_token": "<|im_start|>"}')
    settings = {"eos_token": {"content": "<|im_end|>"}, "chat_template": "{{ bos_token }}-{{ eos_token }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    made = Tokenizer.load(tmp_path)
    assert made.eos_ids == {made.added["<|im_end|>"]}
    assert made.chat_text([{"role": "user", "content": "q"}], generation_prompt=False) == "<|im_start|>-<|im_end|>"


def test_sources_that_are_no_tokenizer(tmp_path):
    with pytest.raises(BadInput, match="holds no tokenizer.json"):
        Tokenizer.load(tmp_path)
    with pytest.raises(BadInput, match="neither a folder nor a hub id"):
        Tokenizer.load("./no/such/folder")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BadInput, match="cannot be read"):
        Tokenizer.load(tmp_path)
    with pytest.raises(BadInput, match="is a file"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    _byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text("nonsense")
    with pytest.raises(BadInput, match="is not JSON"):
        Tokenizer.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(BadInput, match="not a JSON object"):
        Tokenizer.load(tmp_path)


def test_unknown_decoder_is_refused():
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.decoder = tokenizers.decoders.WordPiece()
    with pytest.raises(BadInput, match="neither byte-level nor sentencepiece"):
        Tokenizer(backend).token_bytes()
