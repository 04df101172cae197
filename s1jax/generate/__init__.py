"""Generation: controls (automata over ids), sampling, the compiled decode loop, and the engine of slots around it."""

from s1jax.generate import budget

# What builds the automaton of a `control.kind`. The two share one, so their rows mix in a batch.
CONTROLS = {"free": budget.build, "budget": budget.build}
