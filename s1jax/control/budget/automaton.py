"""Budget forcing as an automaton over ids: how long a row thinks, and what ends its thinking.

`free` is the same automaton with rows that begin in the answer, so both mix in one batch. The rules are in
`s1jax.control.budget.rules`; here a step is put together from them, and the tables are built. No branch and no shape
depends on data.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from s1jax.config import BadInput
from s1jax.control.budget import outside
from s1jax.control.budget.account import account
from s1jax.control.budget.rules import Draw, advance, answer, closes_or_looks, decide, leave, put, rewind
from s1jax.control.budget.settings import BudgetSettings
from s1jax.control.budget.state import ANSWER, HARNESS, NO_BEGINNING, OPEN, OVER, S1JAX, THINK, State, fresh
from s1jax.control.matching import ROOT, Matching, tabulate
from s1jax.control.trail import Trail
from s1jax.engine.protocol import DONE, PAUSE, RUN, Account, Array, Step
from s1jax.text.tokens import Tokenizer

# Marks of an id, as bits: never drawn; an EOS; ends in a newline; from DELIMITER on, one bit per text, set where the id
# completes that text by itself or begins its usual encoding.
ABSENT, EOS, NEWLINE, DELIMITER = 1, 2, 4, 8
MAX_TEXTS = 27


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BudgetForcing:
    """The automaton of `free` and `budget` rows; an `s1jax.engine.protocol.Automaton`.

    Its leaves are NumPy arrays as built: put them on the device once, and keep this one for what runs on the host.

    Attributes:
      matching: tables of `texts` over the vocabulary.
      marks_V: int32 bits of an id.
      begins_V: int32 bits: DELIMITER and up, set where the id's last bytes begin that text.
      texts: delimiters, think headers and answer headers of all rows.
      n_recent, max_pattern: sizes W and P of a trail.
    """

    matching: Matching
    marks_V: Array
    begins_V: Array
    texts: tuple[bytes, ...] = dataclasses.field(metadata={"static": True})
    n_recent: int = dataclasses.field(metadata={"static": True})
    max_pattern: int = dataclasses.field(metadata={"static": True})

    def rows(self, settings: Sequence[BudgetSettings]) -> State:
        """Fresh states (NumPy). Raises BadInput for a delimiter or a pattern size this control was not built for."""
        return fresh(settings, self.texts, self.n_recent, self.max_pattern)

    def forbid(self, state_B: State) -> Array:
        """`[B, V]` bool: ids the tokenizer lacks; for the first draw looked at after an ignored end, ends too."""
        looks_B = closes_or_looks(state_B.limits, state_B.progress)[1]
        guard_B = jnp.where(looks_B, state_B.progress.guard_B, OPEN)
        bit_J = jnp.asarray(DELIMITER << np.arange(len(self.texts), dtype=np.int32))
        texts_B = jnp.sum(jnp.where(state_B.limits.active_BJ, bit_J, 0), axis=1, dtype=jnp.int32)
        ends_B = jnp.where(guard_B == OPEN, ABSENT, texts_B | EOS | ABSENT)
        beginnings_B = jnp.where(guard_B == NO_BEGINNING, texts_B, 0)
        return (self.marks_V & ends_B[:, None] | self.begins_V & beginnings_B[:, None]) != 0

    def step(self, state_B: State, drawn_B: Array) -> tuple[State, Step]:
        """One id, or none, for every row.

        Args:
          state_B: rows in any phase; those that are over stay as they are.
          drawn_B: int32 ids, drawn under `forbid(state_B)`.
        """
        limits, progress, trail = state_B.limits, state_B.progress, state_B.trail
        draw, matched_B, run_BP = self._look(state_B, drawn_B)
        move = decide(limits, progress, draw)
        rewind_B = rewind(limits, progress, draw, move)
        # The harness looks for a newline before it cuts.
        seen_B = jnp.where(limits.algorithm_B == HARNESS, 0, draw.half_B)
        text = put(limits, progress, move, trail.newline_before(seen_B))
        put_B = limits.text_BQI[jnp.arange(len(drawn_B)), text.text_B, text.cursor_B]
        token_B = jnp.where(text.puts_B, put_B, drawn_B)
        is_kept_B = text.puts_B | move.keeps_B | move.stays_B | move.answers_B
        after = advance(limits, progress, draw, move, text, rewind_B=rewind_B, is_kept_B=is_kept_B)
        after = answer(limits, leave(limits, progress, after, draw, move, text), draw, move)
        entry = Trail(
            matched_BW=matched_B[:, None],
            size_BW=self.matching.length_V[token_B][:, None],
            newline_BW=(self.marks_V[token_B] & NEWLINE != 0)[:, None],
            drawn_BX=token_B[:, None],
            run_BWP=run_BP[:, None],
        )
        is_new_round_B = move.skips_B & (limits.algorithm_B != S1JAX)
        restarts_B = text.puts_B | is_new_round_B | ((after.phase_B == ANSWER) & ~move.answers_B)
        moved = trail.follow(entry, rewind_B, is_kept_B, restarts_B)
        waiting = State(limits, dataclasses.replace(progress, pause_B=progress.pause_B + 1), trail)
        state = _select(move.pauses_B, waiting, State(limits, after, moved))
        status_B = jnp.where(move.pauses_B, PAUSE, jnp.where(after.phase_B == OVER, DONE, RUN))
        acts_B = ~move.pauses_B
        return state, Step(token_B, rewind_B * acts_B, is_kept_B & acts_B, text.puts_B & acts_B, status_B)

    def account(self, state_row: State, token_ids: Sequence[int], forced: Sequence[bool]) -> Account:
        """On the host: see `s1jax.control.budget.account.account`."""
        is_eos_V = (np.asarray(self.marks_V) & EOS) != 0
        return account(self.matching, self.texts, is_eos_V, state_row, token_ids, forced)

    def thinking_tokens(self, state_row: State, n_tokens: int) -> int:
        """Tokens of thinking so far; those of a block that a `free` row opened by itself are not counted yet."""
        return n_tokens if int(state_row.progress.phase_B) == THINK else int(state_row.progress.thinking_B)

    def extend(self, state_row: State, token_ids: Sequence[int], n_tokens: int) -> State:
        """Tokens from outside (`decode_rules.md`, rule 22): see `s1jax.control.budget.outside.extend`."""
        ends_line = [bool(np.asarray(self.marks_V)[token] & NEWLINE) for token in token_ids]
        return outside.extend(state_row, ends_line)

    def refork(self, state_row: State, settings: BudgetSettings) -> State:
        """The same point under other limits: see `s1jax.control.budget.outside.refork`."""
        return outside.refork(state_row, jax.tree.map(lambda leaf: leaf[0], self.rows([settings])))

    def _look(self, state: State, drawn_B: Array) -> tuple[Draw, Array, Array]:
        """What the draw means, the match state after it, and its runs."""
        limits, trail = state.limits, state.trail
        before_B = trail.matched_BW[:, 0]
        matched_B, event_B = self.matching.read(before_B, drawn_B)
        is_found_B, delimiter_B, reach_B = self.matching.completed(event_B, limits.active_BJ)
        is_eos_B = (self.marks_V[drawn_B] & EOS) != 0
        run_BP, loops_B = trail.detect(drawn_B, limits.min_pattern_B, limits.max_pattern_B, limits.min_count_B)
        draw = Draw(
            is_end_B=is_eos_B | is_found_B,
            is_eos_B=is_eos_B,
            is_kept_B=jnp.take_along_axis(limits.kept_BJ, delimiter_B[:, None], axis=1)[:, 0] & ~is_eos_B,
            # An EOS is an end by itself: half a delimiter before it is ordinary text.
            pending_B=jnp.where(is_eos_B, 0, trail.pending(reach_B)),
            half_B=trail.pending(self.matching.half(before_B, limits.active_BJ)),
            loops_B=loops_B,
        )
        return draw, matched_B, run_BP


def build(tokenizer: Tokenizer, vocab_size: int, configs: Iterable[Any]) -> BudgetForcing:
    """The automaton for all rows that will be admitted under `configs`.

    Args:
      configs: of `budget` and `free`; `markers` and `repetition_detection` are read.
      vocab_size: rows of the model's head; ids the tokenizer lacks are never drawn.

    Raises:
      BadInput: too many different texts, a vocabulary smaller than the tokenizer's, or one with nothing but ends in it.
    """
    configs = list(configs)
    if vocab_size < tokenizer.size:
        raise BadInput(
            f"the model has {vocab_size} tokens and the tokenizer {tokenizer.size}; give the tokenizer of this model"
        )
    delimiters = dict.fromkeys(text for config in configs for text in config.markers.thinking_end)
    headers = [text for c in configs for text in (c.markers.thinking_start.strip(), c.markers.answer_start)]
    # With no text at all the tables would have no column.
    texts = tuple(dict.fromkeys(text.encode() for text in (*delimiters, *headers) if text)) or (b"\0",)
    if len(texts) > MAX_TEXTS:
        raise BadInput(f"the controls have {len(texts)} different delimiters and headers; give at most {MAX_TEXTS}")
    matching = tabulate(texts, tokenizer.token_bytes(), vocab_size)
    marks_V, begins_V = _mark(tokenizer, matching, texts, vocab_size)
    for row in {config.markers.thinking_end for config in configs}:
        bits = sum(DELIMITER << texts.index(text.encode()) for text in row if text)
        if ((marks_V & (bits | EOS | ABSENT) | begins_V & bits) != 0).all():
            raise BadInput(f"thinking_end is {list(row)}: every id begins or ends one of these; give other texts")
    patterns = [c.repetition_detection.max_pattern_size for c in configs if c.repetition_detection]
    return BudgetForcing(
        matching=matching,
        marks_V=marks_V,
        begins_V=begins_V,
        texts=texts,
        n_recent=4 * max((len(text.encode()) for text in delimiters), default=1),
        max_pattern=max(patterns, default=0),
    )


def _mark(
    tokenizer: Tokenizer, matching: Matching, texts: Sequence[bytes], vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    token_bytes = tokenizer.token_bytes()
    marks_V = np.full(vocab_size, ABSENT, np.int32)
    # An id without bytes is a hole in the vocabulary.
    marks_V[: len(token_bytes)] = [
        (ABSENT if not text else 0) | (NEWLINE if text.endswith(b"\n") else 0) for text in token_bytes
    ]
    marks_V[[id for id in sorted(tokenizer.eos_ids) if id < vocab_size]] |= EOS
    begins_V = np.zeros(vocab_size, np.int32)
    next_V, event_V = matching.next_MC[ROOT, matching.class_V], matching.event_MC[ROOT, matching.class_V]
    for index, text in enumerate(texts):
        marks_V[matching.rank_EJ[event_V, index] > 0] |= DELIMITER << index
        marks_V[tokenizer.encode_markup(text.decode())[0]] |= DELIMITER << index
        begins_V[matching.half_MJ[next_V, index] > 0] |= DELIMITER << index
    return marks_V, begins_V


def _select(condition_B: Array, state: State, other: State) -> State:
    """Row by row `state` where the condition holds; limits are the same in both."""

    def pick(leaf: Array, other_leaf: Array) -> Array:
        return jnp.where(condition_B.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, other_leaf)

    progress = jax.tree.map(pick, state.progress, other.progress)
    return State(state.limits, progress, jax.tree.map(pick, state.trail, other.trail))
