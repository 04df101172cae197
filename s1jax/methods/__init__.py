"""Methods: which rows are asked for, and what is made of them. One file and one line each."""

from s1jax.methods import single, vote
from s1jax.methods.method import Method

METHODS: dict[str, Method] = {"single": single.METHOD, "vote": vote.METHOD}


def configs() -> dict[str, type]:
    """The config class of every kind, for `s1jax.config.choice`."""
    return {kind: method.config for kind, method in METHODS.items()}
