"""The oracle reproduces recorded runs of upstream's two algorithms: its evaluation harness and its README.

The recordings say in their first line what they are and how they were made. Nothing in them was derived from the
rules that the oracle follows.
"""

import hashlib
import json
import pathlib

import pytest
from oracle_budget import Draw, OracleResult, OracleRow, simulate
from oracle_matching import cut_at_stop

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"


def load(name: str) -> tuple[dict, list[dict]]:
    head, *cases = [json.loads(line) for line in (GOLDEN / name).read_text().splitlines()]
    return head, cases


HARNESS, HARNESS_CASES = load("harness.jsonl")
README, README_CASES = load("readme.jsonl")
VOCABULARY: list[str] = HARNESS["vocabulary"]
SOT, EOT, EOD = (VOCABULARY.index(text) for text in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"))


def encode(text: str) -> tuple[int, ...]:
    """Longest match first, which is unambiguous for the texts of these cases."""
    ids: list[int] = []
    while text:
        best = max((piece for piece in VOCABULARY if text.startswith(piece)), key=len)
        ids.append(VOCABULARY.index(best))
        text = text[len(best) :]
    return tuple(ids)


def model(rule: dict) -> Draw:
    """The recorded model, as the first line of the recording describes it."""

    def seeded(kept: tuple[int, ...], forbidden: frozenset[int]) -> int:
        digest = hashlib.sha256(f"{rule['seed']}:{','.join(map(str, kept))}".encode()).digest()
        wanted = [rule["bag"][byte % len(rule["bag"])] for byte in digest] + sorted(rule["bag"])
        return next(token for token in wanted if token not in forbidden)

    def table(kept: tuple[int, ...], forbidden: frozenset[int]) -> int:
        wanted = rule["prefer"][min(len(kept), len(rule["prefer"]) - 1)]
        # A step that does not look at its draw may ask where upstream never drew.
        return next((token for token in wanted if token not in forbidden), EOT)

    return {"seeded": seeded, "table": table}[rule["kind"]]


def s1_row(**changes) -> OracleRow:
    fields = {
        "prompt_length": 3,
        "max_length": 2000,
        "max_new_tokens": 2000,
        "token_bytes": tuple(text.encode() for text in VOCABULARY),
        "eos_ids": frozenset({EOT}),
        "delimiters": (b"<|im_start|>",),
        "delimiter_first_ids": (SOT,),
        "kept_delimiter": (False,),
        "answer_start": encode("<|im_start|>answer"),
        "forced_end": encode("<|im_start|>answer\nFinal Answer:"),
        "newline": encode("\n"),
    }
    return OracleRow(**(fields | changes))


def harness_row(case: dict) -> OracleRow:
    arguments = case["arguments"]
    task_stops = [text for text in arguments["until"] if text != "<|im_end|>"]
    string = arguments.get("thinking_n_ignore_str")
    return s1_row(
        eos_ids=frozenset({EOT, *case.get("more_eos", [])}),
        delimiters=(b"<|im_start|>", *(text.encode() for text in task_stops)),
        delimiter_first_ids=(SOT, *(encode(text)[0] for text in task_stops)),
        kept_delimiter=(False,) * (1 + len(task_stops)),
        budget=case["limit"],
        n_ignore=arguments.get("thinking_n_ignore", 0),
        strings=() if string is None else (encode(string),),
        answer_budget=arguments["max_tokens"],
        unstripped_eos_ids=frozenset(case.get("more_eos", [])),
        mode="harness" if "thinking_n_ignore" in arguments else "s1jax",
    )


def parts(result: OracleResult) -> tuple[list[int], list[int], list[int]]:
    """Thinking, what is put after it, answer."""
    ids = list(result.token_ids)
    return (
        ids[: result.thinking_tokens],
        ids[result.thinking_tokens : result.answer_offset],
        ids[result.answer_offset :],
    )


def test_the_recordings_are_of_one_commit_and_large():
    assert HARNESS["commit"] == README["commit"] == "77272c6e925d610257a50b520bad15330b513389"
    assert HARNESS["vocabulary"] == README["vocabulary"]
    assert (len(HARNESS_CASES), len(README_CASES)) == (421, 300)


@pytest.mark.parametrize("group", sorted({case["group"] for case in HARNESS_CASES}))
def test_harness(group):
    for case in [case for case in HARNESS_CASES if case["group"] == group]:
        row = harness_row(case)
        result = simulate(row, model(case["model"]))
        thinking, appended, answer = parts(result)
        stops = [text.encode() for text in case["arguments"]["until"] if text != "<|im_end|>"]
        if cut := cut_at_stop(row.token_bytes, result.token_ids, result.answer_offset, stops):
            answer = list(cut[0][result.answer_offset :])
        assert (thinking, appended, answer) == (case["thinking"], case["appended"], case["answer"]), case
        assert all(result.forced[result.thinking_tokens : result.answer_offset])
        assert result.n_ignored == case["rounds"] - 1, case
        assert result.thinking_finish_reason == {"length": "budget", "stop": "natural"}[case["finish_reason"]], case
        if not cut:
            assert result.finish_reason == case["answer_finish_reason"], case


@pytest.mark.parametrize("group", sorted({case["group"] for case in README_CASES}))
def test_readme(group):
    for case in [case for case in README_CASES if case["group"] == group]:
        arguments = case["arguments"]
        row = s1_row(
            eos_ids=frozenset({EOT, EOD}),
            budget=arguments["MAX_TOKENS_THINKING"],
            n_ignore=arguments["NUM_IGNORE"],
            strings=(encode(arguments["ignore_str"]),),
            mode="readme",
        )
        result = simulate(row, model(case["model"]))
        assert parts(result) == (case["thinking"], [], case["answer"]), case
        assert result.n_ignored == case["rounds"] - 1, case
        assert result.thinking_finish_reason == {"length": "budget", "stop": "natural"}[case["finish_reason"]], case
        assert result.finish_reason == "stop", case
