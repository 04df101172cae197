"""Controls: how long a row thinks and what ends its thinking. One file (or package) and one line each."""

from collections.abc import Iterable
from typing import Any

from s1jax.control import budget, free
from s1jax.engine.protocol import Automaton, Control
from s1jax.text.tokens import Tokenizer

CONTROLS: dict[str, Control] = {"budget": budget.CONTROL, "free": free.CONTROL}


def configs() -> dict[str, type]:
    """The config class of every kind, for `s1jax.config.choice`."""
    return {kind: control.config for kind, control in CONTROLS.items()}


def automata(tokenizer: Tokenizer, vocab_size: int, asked: Iterable[Any]) -> dict[str, Automaton]:
    """The automaton of each kind of control among the configs; kinds built alike share one.

    Raises:
      BadInput: configs that cannot be served together (see `Control.build`).
    """
    by_build: dict[Any, list[Any]] = {}
    for config in asked:
        by_build.setdefault(of(config).build, []).append(config)
    built = {build: build(tokenizer, vocab_size, configs) for build, configs in by_build.items()}
    return {config.kind: built[build] for build, configs in by_build.items() for config in configs}


def of(config: Any) -> Control:
    """The entry that a config belongs to."""
    return CONTROLS[config.kind]
