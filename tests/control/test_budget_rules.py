"""Every rule of budget forcing by hand, and upstream's recorded runs: the automaton gives what the oracle gives.

The cases and their expected ids are those of the oracle's own tests; here the automaton stands in the oracle's place.
"""

import budget_drive
import oracle_cases
import pytest
import test_oracle_budget
import test_oracle_budget_rows
from oracle_matching import cut_at_stop
from test_oracle_harness import EOD, EOT, HARNESS_CASES, README_CASES, encode, harness_row, model, parts, s1_row

# Classes TestRule0... to TestRule21..., TestReadme and TestAdmission.
for module in (test_oracle_budget, test_oracle_budget_rows):
    globals().update({name: item for name, item in vars(module).items() if name.startswith("Test")})


class TestRule21Harness(test_oracle_budget_rows.TestRule21Harness):
    # Upstream leaves `<|endoftext|>` in the context; here every EOS is an end that is taken out.
    test_an_eos_that_upstream_does_not_strip_stays_and_has_its_own_step = None


class TestRule10TheForbiddenDraw(test_oracle_budget_rows.TestRule10TheForbiddenDraw):
    test_a_row_that_takes_too_many_steps_is_an_error = None  # of the oracle alone


@pytest.fixture(autouse=True)
def automaton(monkeypatch):
    """The hand-made cases run the automaton."""
    monkeypatch.setattr(oracle_cases, "simulate", budget_drive.simulate)


def test_the_harness_as_recorded():
    cases = [case for case in HARNESS_CASES if not case.get("more_eos")]
    assert len(cases) >= 380
    rows = [harness_row(case) for case in cases]
    results = budget_drive.simulate_all(rows, [model(case["model"]) for case in cases])
    for case, row, result in zip(cases, rows, results, strict=True):
        thinking, appended, answer = parts(result)
        stops = [text.encode() for text in case["arguments"]["until"] if text != "<|im_end|>"]
        cut = cut_at_stop(row.token_bytes, result.token_ids, result.answer_offset, stops)
        answer = list(cut[0][result.answer_offset :]) if cut else answer
        assert (thinking, appended, answer) == (case["thinking"], case["appended"], case["answer"]), case
        assert all(result.forced[result.thinking_tokens : result.answer_offset]), case
        assert result.n_ignored == case["rounds"] - 1, case
        assert result.thinking_finish_reason == {"length": "budget", "stop": "natural"}[case["finish_reason"]], case


def test_the_readme_as_recorded():
    rows = [
        s1_row(
            eos_ids=frozenset({EOT, EOD}),
            budget=case["arguments"]["MAX_TOKENS_THINKING"],
            n_ignore=case["arguments"]["NUM_IGNORE"],
            strings=(encode(case["arguments"]["ignore_str"]),),
            mode="readme",
        )
        for case in README_CASES
    ]
    results = budget_drive.simulate_all(rows, [model(case["model"]) for case in README_CASES])
    for case, result in zip(README_CASES, results, strict=True):
        assert parts(result) == (case["thinking"], [], case["answer"]), case
        assert result.n_ignored == case["rounds"] - 1, case
        assert result.thinking_finish_reason == {"length": "budget", "stop": "natural"}[case["finish_reason"]], case
