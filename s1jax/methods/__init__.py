"""Methods: what drives an engine, and what is made of the rows it completes."""

from s1jax.methods import single, vote
from s1jax.methods.method import Method

METHODS: dict[str, Method] = {"single": single.METHOD, "vote": vote.METHOD}
