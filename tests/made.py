"""What stands in for shared real data where there is none: configs by their published fields, and a tokenizer.

The fields are facts of the published `config.json` files. The tokenizer has Qwen2.5's special tokens at their ids, its
way of cutting text and its chat format; its merges are learned from a few lines, so ordinary text has other tokens.
"""

import json
import pathlib
from typing import Any

import tokenizers

# heads, kv heads, hidden, layers, feed-forward, tied, head width where the file names it
SIZES = {
    "llama-3.1-70b": (64, 8, 8192, 80, 28672, False, None),
    "llama-3.1-8b": (32, 8, 4096, 32, 14336, False, None),
    "llama-3.2-3b-instruct": (24, 8, 3072, 28, 8192, True, 128),
    "qwen2.5-0.5b-instruct": (14, 2, 896, 24, 4864, True, None),
    "qwen2.5-1.5b-instruct": (12, 2, 1536, 28, 8960, True, None),
    "qwen2.5-14b-instruct": (40, 8, 5120, 48, 13824, False, None),
    "qwen2.5-32b-instruct": (40, 8, 5120, 64, 27648, False, None),
    "qwen2.5-3b-instruct": (16, 2, 2048, 36, 11008, True, None),
    "qwen2.5-72b-instruct": (64, 8, 8192, 80, 29568, False, None),
    "qwen2.5-7b-instruct": (28, 4, 3584, 28, 18944, False, None),
    "qwen3-0.6b": (16, 8, 1024, 28, 3072, True, 128),
    "qwen3-1.7b": (16, 8, 2048, 28, 6144, True, 128),
    "qwen3-32b": (64, 8, 5120, 64, 25600, False, 128),
    "qwen3-4b": (32, 8, 2560, 36, 9728, True, 128),
    "qwen3-8b": (32, 8, 4096, 36, 12288, False, 128),
}
NAMES = ("num_attention_heads", "num_key_value_heads", "hidden_size", "num_hidden_layers", "intermediate_size")
ADDED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ADDED += [f"<|{name}_{side}|>" for name in ("object_ref", "box", "quad", "vision") for side in ("start", "end")]
ADDED += [f"<|{name}_pad|>" for name in ("vision", "image", "video")]
ORDINARY = ["<tool_call>", "</tool_call>", *(f"<|fim_{name}|>" for name in ("prefix", "middle", "suffix", "pad"))]
ORDINARY += ["<|repo_name|>", "<|file_sep|>"]
VOCABULARY = 151_643  # before the added tokens
SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{% macro turn(role, content) %}<|im_start|>{{ role }}\n{{ content }}<|im_end|>\n{% endmacro %}"
    f"{{% if messages[0].role != 'system' %}}{{{{ turn('system', '{SYSTEM}') }}}}{{% endif %}}"
    "{% for m in messages %}{% if m.role == 'tool' %}"
    "{% if loop.first or loop.previtem.role != 'tool' %}<|im_start|>user{% endif %}"
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% if loop.last or loop.nextitem.role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% elif m.tool_calls %}<|im_start|>{{ m.role }}{{ '\n' + m.content if m.content else '' }}"
    "{% for call in m.tool_calls %}{{ '\n<tool_call>\n' }}"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "{{ '\n</tool_call>' }}{% endfor %}<|im_end|>\n"
    "{% else %}{{ turn(m.role, m.content) }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LINES = [
    "think answer user assistant system Answer: Final Answer: Wait Hmm Alternatively steps left",
    "the number of letters in the word is one two three four five six seven eight nine ten",
    "\n\n    x = 1 + 2\n\treturn x\n", "You are a helpful assistant. What is the sum of all of them?",
]  # fmt: skip


def configs() -> dict[str, dict[str, Any]]:
    """Name -> the fields of its published `config.json` that say what the model is."""
    return {name: _config(name, *sizes) for name, sizes in SIZES.items()}


def _config(name: str, *sizes: Any) -> dict[str, Any]:
    *numbers, tied, width = sizes
    is_llama, is_qwen3 = name.startswith("llama"), name.startswith("qwen3")
    shared = {
        **dict(zip(NAMES, numbers, strict=True)),
        **{"tie_word_embeddings": tied, "attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02},
        **{"torch_dtype": "bfloat16", "use_cache": True, **({} if width is None else {"head_dim": width})},
    }
    if is_llama:
        factor = 32.0 if "3.2" in name else 8.0
        rope = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        return {
            **shared,
            **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256},
            **{"rope_theta": 500000.0, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072},
            **{"rope_scaling": {**rope, "original_max_position_embeddings": 8192}, "attention_bias": False},
            **{"mlp_bias": False, "bos_token_id": 128000, "eos_token_id": 128001},
        }
    is_large = not is_qwen3 and numbers[2] >= 3584
    return {
        **shared,
        **{"model_type": "qwen3" if is_qwen3 else "qwen2", "vocab_size": 152064 if is_large else 151936},
        **{"architectures": [f"Qwen{3 if is_qwen3 else 2}ForCausalLM"], "rope_theta": 1000000.0},
        **{"rms_norm_eps": 1e-6, "max_position_embeddings": 40960 if is_qwen3 else 32768},
        **({"attention_bias": False, "rope_scaling": None, "sliding_window": None} if is_qwen3 else {}),
        **{"use_sliding_window": False, "max_window_layers": numbers[3]},
        **{"bos_token_id": 151643, "eos_token_id": 151645},
    }


def write_configs(folder: pathlib.Path) -> pathlib.Path:
    """The configs as files `NAME.json`."""
    folder.mkdir(parents=True)
    for name, config in configs().items():
        (folder / f"{name}.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_tokenizer(folder: pathlib.Path) -> pathlib.Path:
    """The tokenizer's files, as Qwen2.5 has them."""
    folder.mkdir(parents=True)
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = _pre_tokenizer()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        LINES * 4, tokenizers.trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    )
    state = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in state["merges"]]
    vocabulary = {**state["vocab"]} | {f"<unused {i}>": i for i in range(len(state["vocab"]), VOCABULARY)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    backend.normalizer = tokenizers.normalizers.NFC()
    backend.pre_tokenizer = _pre_tokenizer()
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken(text, normalized=False, special=True) for text in ADDED])
    backend.add_tokens([tokenizers.AddedToken(text, normalized=False, special=False) for text in ORDINARY])
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    settings |= {"chat_template": TEMPLATE, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    ends = {"bos_token_id": 151643, "eos_token_id": [151645, 151643], "temperature": 0.7}
    (folder / "generation_config.json").write_text(json.dumps(ends), encoding="utf-8")
    return folder


def _pre_tokenizer() -> Any:
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated")
    return tokenizers.pre_tokenizers.Sequence(
        [split, tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
