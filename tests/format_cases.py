"""Rows of training as the tests of formats share them."""

import numpy as np

from s1jax.text.render import Row
from s1jax.text.tokens import Tokenizer
from s1jax.train.packing import fill, loss_weights

THOUGHT = "<think>\nlet me see\n</think>\n\nAnswer: 7"
ASK = {"role": "user", "content": "q?"}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nfirst"},
    {"role": "user", "content": "two?"},
    {"role": "assistant", "content": "second"},
    {"role": "user", "content": "three?"},
    {"role": "assistant", "content": "<think>well</think>third"},
]
SAID = [
    "<|im_start|>think\nhm\n<|im_start|>answer\nAnswer: first<|im_end|>\n",
    "second<|im_end|>\n",
    "<|im_start|>think\nwell\n<|im_start|>answer\nAnswer: third<|im_end|>\n",
]


def in_loss(row: Row, tokenizer: Tokenizer) -> list[str]:
    """The texts that are trained on, read off the weights that packing gives them."""
    arrays = fill([row], [[0]], len(row.ids) + 3, loss_weights([row], "token"))
    weighed = np.concatenate([[False], arrays.weights[0] > 0])[: len(row.ids)]
    borders = np.flatnonzero(np.diff(np.concatenate([[False], weighed, [False]])))
    assert weighed.sum() == row.loss_tokens and np.isclose(arrays.weights.sum(), 1)
    return [tokenizer.decode(row.ids[a:b]) for a, b in borders.reshape(-1, 2)]


def alike() -> dict[str, dict]:
    """One example with thinking, as each format has it."""
    answer = {"role": "assistant", "content": THOUGHT}
    return {
        "trace": {"question": "q?", "thinking": "let me see", "answer": "Answer: 7"},
        "s1K": {"question": "q?", "thinking_trajectories": ["let me see"], "attempt": "Answer: 7", "text": "x"},
        "messages": {"messages": [ASK, answer]},
        "parts": {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": THOUGHT}]},
            ]
        },
        "thinking part": {
            "messages": [
                ASK,
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "let me see"},
                        {"type": "text", "text": "Answer: 7"},
                    ],
                },
            ]
        },
        "beside it": {
            "messages": [ASK, {"role": "assistant", "content": "Answer: 7", "reasoning_content": "let me see"}]
        },
        "both": {"messages": [ASK, {**answer, "reasoning": "let me see", "tool_calls": None}]},
        "without newlines": {"messages": [ASK, {"role": "assistant", "content": "<think>let me see</think>Answer: 7"}]},
        "opened by a template": {
            "messages": [ASK, {"role": "assistant", "content": "let me see\n</think>\n\nAnswer: 7"}]
        },
        "s1's headers": {
            "messages": [
                ASK,
                {
                    "role": "assistant",
                    "content": "<|im_start|>think\nlet me see\n<|im_start|>answer\nAnswer: 7",
                },
            ]
        },
        "sharegpt": {"conversations": [{"from": "human", "value": "q?"}, {"from": "gpt", "value": THOUGHT}]},
        "OpenThoughts": {
            "system": None,
            "conversations": [
                {"from": "user", "value": "q?"},
                {
                    "from": "assistant",
                    "value": "<|begin_of_thought|>\n\nlet me see\n\n<|end_of_thought|>\n\n"
                    "<|begin_of_solution|>\n\nAnswer: 7\n\n<|end_of_solution|>",
                },
            ],
        },
        "prompt_completion": {"prompt": "q?", "completion": THOUGHT},
        "conversational": {"prompt": [ASK], "completion": [answer]},
        "alpaca": {"instruction": "q?", "input": "", "output": THOUGHT},
        "text": {
            "text": "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
            "<|im_end|>\n<|im_start|>user\nq?<|im_end|>\n<|im_start|>assistant\n<|im_start|>think\nlet me see\n"
            "<|im_start|>answer\nAnswer: 7<|im_end|>\n"
        },
    }
