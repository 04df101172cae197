"""A control that the package does not know plugs in by one line: config, help, one batch with others, same tokens."""

import dataclasses

import numpy as np
import pytest
from blank_line import CONTROL, BlankLineConfig
from engine_cases import CONFIG, FREE, MAX_LENGTH, S1, facts, model, plain, request, tokenizer
from test_controls import test_a_refork_under_the_same_limits_changes_nothing as refork_contract
from test_controls import test_contract_of_controls as contract

from s1jax import __main__ as cli
from s1jax import records
from s1jax.config import BadInput
from s1jax.control import CONTROLS, automata
from s1jax.engine.config import EngineConfig
from s1jax.engine.engine import Engine
from s1jax.engine.requests import Listener

BLANK = BlankLineConfig(header="<|im_start|>t", answer_header="<|im_start|>x")


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The one line."""
    monkeypatch.setitem(CONTROLS, "blank_line", CONTROL)


def test_it_keeps_the_contract_of_controls():
    contract("blank_line")
    refork_contract("blank_line")


def test_it_is_selected_from_yaml_and_from_the_command_line_and_shown_in_help(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: here\ncontrol: {kind: blank_line, header: '<think>'}\n")
    loaded = cli.load_config("generate", str(recipe), ["control.answer_header=</think>"])
    assert loaded.control == BlankLineConfig(header="<think>", answer_header="</think>")
    assert cli.load_config("generate", None, ["model=x", "control.kind=blank_line"]).control == BlankLineConfig()
    with pytest.raises(BadInput, match="control.thinking_token_budget is for control.kind=budget, and control.kind is"):
        cli.load_config("generate", str(recipe), ["control.thinking_token_budget=5"])
    with pytest.raises(BadInput, match="control.answer_header is for control.kind=blank_line, and control.kind is bud"):
        cli.load_config("eval", None, ["model=x", "benchmark=aime24", "control.answer_header=a"])
    assert cli.main(["generate", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "blank_line" in shown and "answer_header" in shown and "put where the blank line was" in shown.lower()


def make_engine(**fields) -> Engine:
    config = EngineConfig(**{"slots": 4, "max_length": MAX_LENGTH, "window": 8, **fields})
    return Engine(model(), tokenizer(), config, automata(tokenizer(), CONFIG.V, [FREE, S1, BLANK]))


@pytest.fixture(scope="module")
def mixed():
    CONTROLS["blank_line"] = CONTROL
    yield make_engine()
    del CONTROLS["blank_line"]


ROWS = [
    lambda: request("a line", BLANK, n=60, temperature=1.0, logprobs=True),
    lambda: request("a", dataclasses.replace(S1, thinking_n_ignore=2), n=60, temperature=1.0, logprobs=True),
    lambda: request("b", FREE, n=40, temperature=1.0, logprobs=True),
    lambda: request("another", BLANK, n=50, temperature=1.3, logprobs=True, sample=1),
    lambda: request("c", dataclasses.replace(S1, thinking_token_budget=9), n=60, temperature=1.0, logprobs=True),
    lambda: request("third", BLANK, n=20, temperature=0.7, logprobs=True),
]


def test_rows_of_all_kinds_share_a_batch_and_are_what_they_are_alone(mixed):
    together = [row() for row in ROWS]
    for row in together:
        mixed.submit(row)
    company = mixed.run()
    for row, done in zip(together, company, strict=True):
        mixed.submit(row)
        assert mixed.run() == [done]  # alone: the same tokens, the same log-probabilities
        if row.control.kind != "blank_line":
            assert facts(done) == facts(plain(row))  # and those of the oracle
    for row in reversed(together):
        mixed.submit(row)
    assert sorted(mixed.run(), key=lambda done: done.id) == sorted(company, key=lambda done: done.id)
    assert mixed.identity["controls"] == ["blank_line", "budget", "free"]


def test_thinking_ends_where_the_rule_says(mixed):
    newline = tokenizer().encode("\n")[0]
    seen = 0
    for sample in range(12):
        mixed.submit(request("lines", BLANK, n=80, temperature=30.0, id="l", sample=sample))
    for done in mixed.run():
        thought, rest = done.token_ids[: done.thinking_tokens], done.token_ids[done.thinking_tokens :]
        assert not any(a == b == newline for a, b in zip(thought, thought[1:], strict=False))
        if done.blank_line:
            header = tuple(tokenizer().encode_markup(BLANK.answer_header))
            n = done.answer_offset - done.thinking_tokens
            assert rest[:n] == header[:n] and all(done.forced[done.thinking_tokens : done.answer_offset])
            seen += 1
        assert records.to_row(done)["blank_line"] == done.blank_line
    assert seen > 0


def test_it_pauses_forks_and_extends_like_any_other(mixed):
    done, rows = [], []
    listener = Listener(lambda _, row: done.append(row), rows.append, lambda ticket, *_: mixed.pause(ticket))
    ticket = mixed.submit(request("paused", BLANK, n=60, temperature=1.0, id="p"), listener)
    mixed.run()
    assert rows == [ticket]
    mixed.extend(ticket, tokenizer().encode("more"))
    with pytest.raises(BadInput, match="tokens leave no room"):
        mixed.extend(ticket, [1] * 55)
    with pytest.raises(BadInput, match="has control.kind=budget, the row blank_line"):
        other = dataclasses.replace(request("paused", S1, id="p"), prompt_ids=request("paused", BLANK).prompt_ids)
        mixed.fork(ticket, [other])
    assert mixed.ids(ticket)[-4:] == tokenizer().encode("more")
    while not done:
        mixed.resume(ticket)
        mixed.run()
    assert b"more" in b"".join(tokenizer().token_bytes()[token] for token in done[0].token_ids)
    assert np.count_nonzero(done[0].forced) >= 4


def test_an_engine_refuses_kinds_that_it_was_not_made_for(mixed):
    least = Engine(
        model(), tokenizer(), EngineConfig(slots=1, max_length=MAX_LENGTH), automata(tokenizer(), CONFIG.V, [BLANK])
    )
    with pytest.raises(BadInput, match="control.kind=budget, this engine was made for blank_line; make it for"):
        least.submit(request("a", S1))
    least.set_controls(automata(tokenizer(), CONFIG.V, [BLANK, S1]))
    least.submit(request("a", S1, n=20))
    assert len(least.run()) == 1
    snapshot_of = mixed.submit(request("a", dataclasses.replace(S1, pause_at=(3,)), n=40))
    mixed.run()
    with pytest.raises(BadInput, match="restore it in an engine made alike"):
        least.restore(mixed.snapshot(snapshot_of))
    mixed.cancel(snapshot_of)
    mixed.run()
