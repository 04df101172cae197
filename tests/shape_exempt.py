"""Names whose arrays are otherwise than their letters say, each with the reason. The list may only shrink."""

from shape_plugin import Exempt

EXEMPT: tuple[Exempt, ...] = (
    Exempt("s1jax.control.budget.automaton.BudgetForcing.step", ("Trail",), "the new entry and the trail before it"),
    Exempt("s1jax.control.budget", ("Limits", "Progress", "Trail"), "the state of one row, on the host", without="B"),
    Exempt("s1jax.control.trail.Trail.follow", ("Trail", "new_BW", "x_BW"), "the new entry and the trail before it"),
    Exempt("s1jax.control.trail._shift", ("new_BW",), "the new entry, one long in W"),
    Exempt("s1jax.control.trail._shift", ("x_BW", "is_new_BW", "moved_BW", "source_BW"), "also with P behind W"),
    Exempt(
        "s1jax.engine",
        ("Limits", "Progress", "Trail", "MixedState"),
        "a control's state of one row, on the host",
        without="B",
    ),
    Exempt("s1jax.engine", ("SamplingParams.key_B",), "raw random bits: two words a key"),
    Exempt("s1jax.engine.cache.attend", ("Slots",), "rows of one length class among those of all"),
    Exempt("s1jax.engine.cache.write", ("Slots", "at_B", "row_B"), "rows of one length class among those of all"),
    Exempt("s1jax.engine.cache.write_chunk", ("Slots",), "the row before and after it was made longer"),
    Exempt("s1jax.engine.decode.set_status", ("status_B",), "one status for all rows"),
    Exempt("s1jax.engine.slots.SlotTable._pieces", ("tokens_BT",), "tokens and what follows them, stacked"),
    Exempt("s1jax.models.attention.in_stripes", ("x_BT",), "whatever stands behind B and T, or T cut into stripes"),
    Exempt("s1jax.models.layers.attention", ("mask_BTS",), "tests give one mask for all rows, which is broadcast"),
)
