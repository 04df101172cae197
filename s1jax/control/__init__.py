"""Controls: pure automata over tokens that say how long a row thinks and what ends its thinking."""

from s1jax.control.budget import automaton as budget

# What builds the automaton of a `control.kind`. The two share one, so their rows mix in a batch.
CONTROLS = {"free": budget.build, "budget": budget.build}
