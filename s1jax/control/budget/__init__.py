"""Budget forcing (arXiv 2501.19393, section 3.1) as an automaton over tokens."""
