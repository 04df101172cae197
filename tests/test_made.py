"""What stands in for shared data is as the real one, wherever the real one is there to compare."""

import json

import made
import transformers

from s1jax.models import config_from_hf
from s1jax.text.tokens import Tokenizer


def test_made_configs_are_the_published_ones(shared):
    real = {path.stem: json.loads(path.read_text()) for path in (shared / "configs").glob("*.json")}
    ours = made.configs()
    assert set(ours) == set(real)
    for name, hf in real.items():
        assert config_from_hf(ours[name]) == config_from_hf(hf), name


def test_the_made_tokenizer_has_the_real_ones_special_tokens_and_format(shared, tmp_path):
    real, ours = Tokenizer.load(shared / "tokenizer" / "qwen2.5"), Tokenizer.load(made.write_tokenizer(tmp_path / "t"))
    assert (ours.added, ours.size, ours.eos_ids) == (real.added, real.size, real.eos_ids)
    call = {"function": {"name": "f", "arguments": {"x": [1, "é"]}}}
    conversations = [
        [{"role": "user", "content": "q"}],
        [
            {"role": "system", "content": "s"},
            {"role": "user", "content": " q \n"},
            {"role": "assistant", "content": "a"},
        ],
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call, call]}],
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x", "tool_calls": [call]}],
        [{"role": "user", "content": "q"}, {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}],
    ]
    for messages in conversations:
        for prompt in (True, False):
            options = {"generation_prompt": prompt}
            assert ours.chat_text(messages, **options) == real.chat_text(messages, **options)


def test_the_made_tokenizer_is_read_alike_by_transformers(tmp_path):
    folder = made.write_tokenizer(tmp_path / "t")
    ours, theirs = Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(str(folder))
    for text in ("think\n\nThe answer is 42.", "  é 你\t<|im_end|><tool_call>x", "don't 123"):
        assert ours.encode_markup(text) == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ours.encode(text)) == text
