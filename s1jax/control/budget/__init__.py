"""Budget forcing (arXiv 2501.19393, section 3.1) as an automaton over tokens."""

from s1jax.control.budget import admission, automaton, config
from s1jax.control.budget.settings import MAX_PAUSES
from s1jax.engine.protocol import Control, Sweep

CONTROL = Control(
    config=config.BudgetConfig,
    header=config.header,
    admit=admission.admit,
    build=automaton.build,
    label=config.label,
    thinking_limits=config.thinking_limits,
    answer_words=config.answer_words,
    may_rewind=config.may_rewind,
    sweep=Sweep(split=config.split, limit=admission.limit, pause_at=admission.pause_at, most=MAX_PAUSES),
)
