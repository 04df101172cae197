"""Which engine completes a row, and what each engine of a process is made of."""

import types

import jax
from engine_cases import CONFIG
from eval_cases import tokenizer_folder

from s1jax.control.budget.config import BudgetConfig
from s1jax.methods import engines
from s1jax.methods.parts import assign_engine
from s1jax.methods.run import GenerateRun
from s1jax.parallel.mesh import MeshConfig
from s1jax.text.tokens import Tokenizer


def test_the_engine_of_a_row_is_the_same_in_every_run():
    """First 8 bytes of `printf p0 | sha256sum`, big end first: other processes and later starts must agree."""
    assert assign_engine("p0", 1000) == 0x169B5B823C62B64C % 1000
    assert assign_engine("q1", 7) == 0xC75DE8C1B7C3AE52 % 7


def test_engines_have_devices_of_their_own(monkeypatch, tmp_path):
    """Two copies of two devices each; each is told what the run says."""
    made: list = []

    def load(source, **how):
        return types.SimpleNamespace(source=source, how=how, config=CONFIG)

    def make(*given, **named):
        made.append((given, named))
        return len(made)

    monkeypatch.setattr(engines.hf, "load", load)
    monkeypatch.setattr(engines, "Engine", make)
    tokenizer = Tokenizer.load(tokenizer_folder(tmp_path / "tokenizer"))
    config = GenerateRun(model="m", dtype="float32", mesh=MeshConfig(data=2, fsdp=1, tensor=2))
    assert engines.build_engines(config, tokenizer, [BudgetConfig()], 40) == [1, 2]
    devices = [list(named["mesh"].devices.flat) for _, named in made]
    assert devices == [jax.local_devices()[:2], jax.local_devices()[2:4]]
    for (model, of_rows, settings, automata), named in made:
        assert (model.source, model.how["dtype"], model.how["stacked"]) == ("m", "float32", False)
        assert model.how["mesh"] is named["mesh"] and of_rows is tokenizer
        assert settings is config.engine and "budget" in automata
        assert (named["dtype"], named["most_rows"], named["notify"]) == ("float32", 40, engines.say)
