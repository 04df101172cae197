"""What is asked of a control: admission, refusals, headers, limits of the tables, shapes of a state."""

import dataclasses
import re
from typing import Any

import jax
import numpy as np
import pytest
import transformers
from budget_cases import ByteTokenizer
from budget_drive import N_IDS, N_ROWS, nameless, padded, step_and_forbid

from s1jax.config import BadInput, from_dict
from s1jax.control import CONTROLS, automata
from s1jax.control.budget import automaton as budget
from s1jax.control.budget.admission import admit
from s1jax.control.budget.config import BudgetConfig, header
from s1jax.control.budget.settings import RepetitionDetection
from s1jax.control.free import FreeConfig
from s1jax.engine.protocol import DONE
from s1jax.text.tokens import Tokenizer

LETTERS = [bytes([byte]) for byte in b"abcdefghijklmnopqrstuvwxyzAFW<>/|_: \n"]
SPELLED: Any = ByteTokenizer([*LETTERS, b"<|im_start|>", b"<|im_end|>"], [len(LETTERS) + 1])
EOS = SPELLED.size - 1
LENGTHS = {"prompt_length": 10, "max_length": 100, "max_new_tokens": 80}
SHORT = BudgetConfig(thinking_end=("<",), answer_start="<a", forced_end="<ab", thinking_n_ignore_str="abba")

FREE = FreeConfig(thinking_end=("<",), answer_start="<a", forced_end="<ab")


@pytest.fixture(scope="module")
def qwen(qwen_files) -> Tokenizer:
    return Tokenizer.load(qwen_files)


@pytest.fixture(scope="module")
def theirs(qwen_files):
    """The same files read by transformers: text -> tokens."""
    backend = transformers.AutoTokenizer.from_pretrained(str(qwen_files))
    return lambda text: tuple(backend(text, add_special_tokens=False)["input_ids"])


def test_the_s1_preset_in_tokens(qwen, theirs):
    row = admit(BudgetConfig(), qwen, prompt_length=20, max_length=32768, max_new_tokens=32768)
    (newline,) = theirs("\n")
    assert row.answer_start == (151644, *theirs("answer"))
    assert row.forced_end == (151644, *theirs("answer\nFinal Answer:"))
    assert (row.newline, row.strings) == ((newline,), (theirs("Wait"),))
    assert (row.delimiters, row.is_kept) == ((b"<|im_start|>",), (False,))
    closing = 1 + len(row.forced_end)
    assert (row.room, row.budget, row.has_budget) == (32748, 32748 - closing, False)
    assert header(BudgetConfig(), qwen) == (151644, *theirs("think"))


def test_the_s1_preset_in_tokens_of_qwen(shared):
    qwen = Tokenizer.load(shared / "tokenizer" / "qwen2.5")
    row = admit(BudgetConfig(), qwen, prompt_length=20, max_length=32768, max_new_tokens=32768)
    assert row.answer_start == header(BudgetConfig(thinking=False), qwen) == (151644, 9217)
    assert row.forced_end == (151644, 9217, 198, 19357, 21806, 25)
    assert (row.newline, row.strings, row.budget) == ((198,), ((14190,),), 32748 - 7)
    assert header(BudgetConfig(), qwen) == (151644, 26865)


def test_headers(qwen, theirs):
    assert header(BudgetConfig(thinking=False), qwen) == (151644, *theirs("answer"))
    for preset in ("think_tags", "qwen3"):  # an empty block, as Qwen3's template has it
        none = header(BudgetConfig(preset=preset, thinking=False), qwen)
        assert none == theirs("<think>\n\n</think>\n\n")
    assert CONTROLS["free"].header(FreeConfig(), qwen) == ()
    assert header(BudgetConfig(force_header=False), qwen) == ()
    assert qwen.decode(header(BudgetConfig(preset="think_tags"), qwen)) == "<think>\n"
    assert header(BudgetConfig(thinking_start="Hm"), qwen) == theirs("Hm")


def test_given_texts_stand_in_for_the_presets():
    config = from_dict(BudgetConfig, {"preset": "think_tags", "thinking_end": ["</a>", "</b>"]})
    assert config.markers.thinking_end == ("</a>", "</b>")
    assert config.markers.thinking_start == "<think>\n"


def test_a_delimiter_that_answer_start_begins_with_is_replaced():
    config = BudgetConfig(thinking_end=("<", "<a", "<b", "a"), answer_start="<ab", forced_end="x")
    assert admit(config, SPELLED, **LENGTHS).is_kept == (False, False, True, True)


@pytest.mark.parametrize(
    ("fields", "budget_", "has_budget"),
    [
        ({}, 76, False),
        ({"thinking_token_budget": -1}, 76, False),
        ({"thinking_token_budget": 0}, 0, True),
        ({"thinking_token_budget": 76}, 76, True),
        ({"answer_token_budget": 70}, 6, False),
        ({"answer_start": "<abcdef"}, 73, False),  # 7 for it, the longer one
        ({"algorithm": "harness", "thinking_n_ignore": 2, "thinking_n_ignore_str": "ab"}, 24, False),
        ({"algorithm": "harness", "thinking_n_ignore": 2, "thinking_token_budget": 22}, 22, True),
        ({"algorithm": "readme", "thinking_n_ignore": 3, "thinking_n_ignore_str": ["ab", "c"]}, 71, False),
    ],
)
def test_the_effective_budget(fields, budget_, has_budget):
    # Room 80, less 4 for `\n<ab` (`<a` is shorter).
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    row = admit(dataclasses.replace(SHORT, **fields), SPELLED, **LENGTHS)
    assert (row.budget, row.has_budget) == (budget_, has_budget)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"thinking_token_budget": 77}, "leaves 76 tokens of thinking, but thinking_token_budget is 77; shorten"),
        ({"answer_token_budget": 77}, "less 4 for the end of thinking and 77 for the answer leaves -1 tokens"),
        ({"thinking_token_budget": 5, "min_thinking_tokens": 6}, "leaves a thinking budget of 5, but min_thinking_tok"),
        ({"min_thinking_tokens": 77}, "leaves a thinking budget of 76, but min_thinking_tokens is 77"),
        (
            {"algorithm": "harness", "thinking_token_budget": 30, "thinking_n_ignore": 2},
            "and 8 for strings leaves 68 tokens of thinking, but thinking_token_budget is 30 in each of 3 rounds",
        ),
        ({"algorithm": "readme", "thinking_n_ignore": 20}, "and 80 for strings leaves -4 tokens"),
        ({"thinking_token_budget": True}, "control.thinking_token_budget is True; give a whole number from -1"),
        ({"thinking_token_budget": 3.0}, "control.thinking_token_budget is 3.0; give a whole number"),
        ({"thinking_token_budget": -2}, "control.thinking_token_budget is -2; give a whole number from -1"),
        ({"thinking_token_budget": 2**31}, "control.thinking_token_budget is 2147483648; give a whole number from -1"),
        ({"min_thinking_tokens": -1}, "control.min_thinking_tokens is -1; give a whole number from 0"),
        ({"thinking_n_ignore": 1.5}, "control.thinking_n_ignore is 1.5; give a whole number from 0"),
        ({"answer_token_budget": 0}, "control.answer_token_budget is 0; give a whole number from 1"),
        ({"pause_at": (4, 4)}, "control.pause_at is [4, 4]; give at most 8 ascending numbers"),
        ({"pause_at": tuple(range(9))}, "give at most 8 ascending numbers"),
        ({"pause_at": (-1,)}, "control.pause_at is -1; give a whole number from 0"),
        (
            {"repetition_detection": RepetitionDetection(65, 2)},
            "max_pattern_size is 65; give a whole number from 1 to 64",
        ),
        (
            {"repetition_detection": RepetitionDetection(4, 2, 5)},
            "min_pattern_size is 5; give a whole number from 1 to 4",
        ),
        ({"repetition_detection": RepetitionDetection(4, 1)}, "min_count is 1; give a whole number from 2 to 64"),
        ({"thinking": False, "thinking_token_budget": 5}, "thinking_token_budget is 5 but control.thinking is false"),
        (
            {"thinking": False, "thinking_n_ignore": 1},
            "control.thinking_n_ignore is 1 but control.thinking is false; leave one",
        ),
        ({"thinking": False, "min_thinking_tokens": 1}, "control.min_thinking_tokens is 1 but control.thinking is"),
        ({"thinking": False, "pause_at": (3,)}, "control.pause_at is (3,) but control.thinking is false"),
        ({"algorithm": "harness", "min_thinking_tokens": 1}, "which control.algorithm=harness does not have"),
        (
            {"algorithm": "readme", "pause_at": (1,)},
            "control.pause_at is (1,), which control.algorithm=readme does not",
        ),
        (
            {"algorithm": "readme", "repetition_detection": RepetitionDetection(2, 2)},
            "which control.algorithm=readme does not have; leave it out or take algorithm=s1jax",
        ),
        ({"thinking_end": tuple("abcdefghi")}, "control.thinking_end has 9 texts; give at most 8"),
        (
            {"thinking_end": ("abcdefghi",)},
            "control.thinking_end 'abcdefghi' is 9 tokens long; give a text of 1 to 8 tokens",
        ),
        ({"thinking_end": ("",)}, "control.thinking_end '' is 0 tokens long"),
        ({"thinking_n_ignore_str": ("a",) * 9}, "control.thinking_n_ignore_str has 9 texts; give at most 8"),
        ({"thinking_n_ignore_str": "a" * 65}, "is 65 tokens long; give a text of 0 to 64 tokens"),
        ({"answer_start": ""}, "control.answer_start '' is 0 tokens long; give a text of 1 to 64 tokens"),
        ({"forced_end": "a" * 65}, "is 65 tokens long; give a text of 1 to 64 tokens"),
        (
            {"thinking": False, "answer_token_budget": 81},
            "room 80, but 81 tokens of answer are asked for; shorten the prompt",
        ),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(BadInput, match=re.escape(message)) as error:
        admit(dataclasses.replace(SHORT, **fields), SPELLED, **LENGTHS)
    assert "\n" not in str(error.value)


def test_a_delimiter_of_few_ids_and_many_bytes():
    tokenizer: Any = ByteTokenizer([b"x" * 65, b"\n", b"a", b"b", b"<"], [])
    with pytest.raises(BadInput, match="has 65 bytes; give at most 64"):
        texts = dict.fromkeys(("thinking_start", "answer_start", "forced_end"), "a")
        admit(dataclasses.replace(SHORT, thinking_end=("x" * 65,), **texts), tokenizer, **LENGTHS)


def test_no_room_at_all():
    for config in (FREE, SHORT):
        with pytest.raises(BadInput, match="prompt of 100 tokens, max_length 100 and max_new_tokens 80: room 0"):
            CONTROLS[config.kind].admit(config, SPELLED, prompt_length=100, max_length=100, max_new_tokens=80)


def test_a_run_without_thinking_has_a_cap_on_its_answer():
    row = admit(dataclasses.replace(SHORT, thinking=False, answer_token_budget=80), SPELLED, **LENGTHS)
    assert (row.is_thinking, row.is_free, row.answer_budget) == (False, False, 80)


# ---------------------------------------------------------------------------------------------------------- the tables


def test_both_kinds_are_one_automaton():
    assert {"free", "budget"} <= set(CONTROLS)
    both = automata(SPELLED, SPELLED.size, [SHORT, FREE])
    assert isinstance(both["free"], budget.BudgetForcing) and both["free"] is both["budget"]


def test_a_row_remembers_four_times_the_longest_delimiter():
    configs = [dataclasses.replace(SHORT, thinking_end=ends) for ends in (("<", "abc"), ("<a",))]
    assert budget.build(SPELLED, SPELLED.size, configs).n_recent == 4 * 3


def test_states_have_one_shape_whatever_is_asked():
    rich = dataclasses.replace(
        SHORT,
        thinking_end=tuple("abcdefgh"),
        thinking_n_ignore_str=("a" * 64,) * 8,
        pause_at=tuple(range(8)),
        repetition_detection=RepetitionDetection(64, 64),
    )
    poor = FreeConfig(thinking_end=())
    control = budget.build(SPELLED, SPELLED.size, [rich, poor])
    lengths = {"prompt_length": 1, "max_length": 900, "max_new_tokens": 900}
    rows = [CONTROLS[config.kind].admit(config, SPELLED, **lengths) for config in (rich, poor)]
    assert shapes_of_a_row(control.rows(rows[:1])) == shapes_of_a_row(control.rows(rows[1:]))
    state = control.rows(rows)
    after, _ = jax.eval_shape(type(control).step, control, state, np.zeros(2, np.int32))
    assert jax.tree.map(lambda leaf: (leaf.shape[1:], leaf.dtype), after) == shapes_of_a_row(state)


def shapes_of_a_row(state):
    return jax.tree.map(lambda leaf: (leaf.shape[1:], leaf.dtype), state)


def test_absent_ids_and_holes_are_never_drawn():
    tokenizer: Any = ByteTokenizer([b"a", b"b", b"<", b"\n", b""], [])
    config = dataclasses.replace(SHORT, thinking_start="a")
    control = budget.build(tokenizer, 8, [config])
    state = control.rows([admit(config, tokenizer, **LENGTHS)])
    assert np.asarray(control.forbid(state)).tolist() == [[False] * 4 + [True] * 4]


@pytest.mark.parametrize(
    ("configs", "vocab_size", "message"),
    [
        ([SHORT], 3, "the model has 3 tokens and the tokenizer 39; give the tokenizer of this model"),
        (
            [dataclasses.replace(SHORT, thinking_end=(a + b,)) for a in "abcdefg" for b in "abcd"],
            99,
            "different delimiters and headers; give at most 27",
        ),
    ],
)
def test_builds_that_are_refused(configs, vocab_size, message):
    with pytest.raises(BadInput, match=message):
        budget.build(SPELLED, vocab_size, configs)


def test_a_vocabulary_of_nothing_but_ends_is_refused():
    tokenizer: Any = ByteTokenizer([b"a", b"b", b"\n"], [])
    config = BudgetConfig(thinking_start="a", thinking_end=("a", "b", "\n"), answer_start="a", forced_end="b")
    with pytest.raises(BadInput, match="every id begins or ends one of these; give other texts"):
        budget.build(tokenizer, 3, [config])


def test_rows_the_tables_were_not_built_for_are_refused():
    control = budget.build(SPELLED, SPELLED.size, [SHORT])
    other = admit(dataclasses.replace(SHORT, thinking_end=("zz",)), SPELLED, **LENGTHS)
    with pytest.raises(BadInput, match=r"delimiter b'zz' is none of .* for which the run was set up; add it there"):
        control.rows([other])
    loops = admit(dataclasses.replace(SHORT, repetition_detection=RepetitionDetection(3, 2)), SPELLED, **LENGTHS)
    with pytest.raises(BadInput, match="max_pattern_size is 3, and the run was set up for at most 0"):
        control.rows([loops])


def test_a_presets_marker_that_is_no_token_is_refused():
    plain: Any = ByteTokenizer(LETTERS, [])
    admit(BudgetConfig(), SPELLED, **LENGTHS)
    with pytest.raises(BadInput, match=r"preset=s1 has '<\|im_start\|>' in thinking_start, .* \(12 tokens\)"):
        admit(BudgetConfig(), plain, **LENGTHS)
    given = dict.fromkeys(("thinking_start", "answer_start", "forced_end"), "<|im_start|>")
    with pytest.raises(BadInput, match="in thinking_end"):
        admit(BudgetConfig(**given), plain, **LENGTHS)


def test_a_row_of_any_phase_that_does_not_run_is_left_in_peace():
    """The loop throws away what a step says of such rows; it must only be harmless."""
    control = padded(budget.build(SPELLED, N_IDS, [FREE]))
    state = control.rows([CONTROLS["free"].admit(FREE, SPELLED, **LENGTHS)] * N_ROWS)
    over, step, _ = step_and_forbid(nameless(control), state, np.full(N_ROWS, EOS, np.int32))
    assert (step.status_B == DONE).all() and step.keep_B.all()
    again, step, _ = step_and_forbid(nameless(control), over, np.zeros(N_ROWS, np.int32))
    assert (step.status_B == DONE).all() and not step.keep_B.any() and not step.rewind_B.any()
    same = jax.tree.map(np.array_equal, (again.progress, again.limits), (over.progress, over.limits))
    assert all(jax.tree.leaves(same))


def test_texts_that_admission_refuses_do_not_stop_the_tables():
    """Which request asks for an empty delimiter is said where it is admitted."""
    config = dataclasses.replace(SHORT, thinking_end=("<", ""))
    assert b"" not in budget.build(SPELLED, SPELLED.size, [config]).texts


def test_an_eos_that_the_model_has_no_row_for():
    tokenizer: Any = ByteTokenizer(SPELLED.vocabulary, [EOS, 999])
    control = budget.build(tokenizer, SPELLED.size, [SHORT])
    assert np.flatnonzero(control.marks_V & budget.EOS).tolist() == [EOS]
