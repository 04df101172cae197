"""A control written outside of the package: thinking ends at the first blank line."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from s1jax.config import BadInput
from s1jax.engine.protocol import DONE, RUN, Account, Array, Control, Step

THINK, PUT, ANSWER = 0, 1, 2
MOST = 16  # tokens of an answer header


@dataclasses.dataclass(frozen=True)
class BlankLineConfig:
    """Thinking ends at the first blank line.

    Attributes:
      kind: `blank_line`.
      header: put before thinking.
      answer_header: put where the blank line was.
    """

    kind: Literal["blank_line"] = "blank_line"
    header: str = "<|im_start|>think"
    answer_header: str = "<|im_start|>answer"


@dataclasses.dataclass(frozen=True)
class BlankLineSettings:
    """An admitted row."""

    room: int
    answer_header: tuple[int, ...]
    kind: str = "blank_line"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlankLineState:
    """Where a row is. `put_BQ`: the answer header, padded to MOST tokens, since states have one shape."""

    phase_B: Array
    length_B: Array
    steps_B: Array
    after_newline_B: Array
    thinking_B: Array
    offset_B: Array
    cursor_B: Array
    room_B: Array
    is_full_B: Array
    put_BQ: Array
    put_size_B: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlankLine:
    """The automaton: which tokens are newlines, which are EOS, and which there are at all."""

    newline_V: Array
    eos_V: Array
    absent_V: Array

    def rows(self, settings: Sequence[BlankLineSettings]) -> BlankLineState:
        n = len(settings)
        put_BQ = np.zeros((n, MOST), np.int32)
        for i, row in enumerate(settings):
            put_BQ[i, : len(row.answer_header)] = row.answer_header
        zero = {f.name: np.zeros(n, np.int32) for f in dataclasses.fields(BlankLineState)}
        sizes = {
            "room_B": np.array([row.room for row in settings], np.int32),
            "put_size_B": np.array([len(row.answer_header) for row in settings], np.int32),
        }
        flags = {"after_newline_B": np.zeros(n, bool), "is_full_B": np.zeros(n, bool)}
        return BlankLineState(**{**zero, **sizes, **flags, "put_BQ": put_BQ})

    def forbid(self, state_B: BlankLineState) -> Array:
        return jnp.broadcast_to(self.absent_V, (state_B.phase_B.shape[0], self.absent_V.shape[0]))

    def step(self, state_B: BlankLineState, drawn_B: Array) -> tuple[BlankLineState, Step]:
        s = state_B
        is_newline_B, is_eos_B = jnp.asarray(self.newline_V)[drawn_B], jnp.asarray(self.eos_V)[drawn_B]
        ends_B = (s.phase_B == THINK) & ((is_newline_B & s.after_newline_B) | is_eos_B)
        puts_B = ends_B | (s.phase_B == PUT)
        put_B = jnp.take_along_axis(s.put_BQ, jnp.clip(s.cursor_B, 0, MOST - 1)[:, None], axis=1)[:, 0]
        cursor_B = s.cursor_B + puts_B
        length_B = s.length_B + 1
        is_last_B = puts_B & (cursor_B == s.put_size_B)
        phase_B = jnp.where(is_last_B, ANSWER, jnp.where(puts_B, PUT, s.phase_B))
        is_full_B = length_B >= s.room_B
        is_over_B = ((s.phase_B == ANSWER) & is_eos_B) | is_full_B
        state = dataclasses.replace(
            s,
            phase_B=phase_B,
            length_B=length_B,
            steps_B=s.steps_B + 1,
            after_newline_B=is_newline_B & (s.phase_B == THINK),
            thinking_B=jnp.where(ends_B, s.length_B, s.thinking_B),
            offset_B=jnp.where(is_last_B, length_B, s.offset_B),
            cursor_B=cursor_B,
            is_full_B=is_full_B,
        )
        no_B = jnp.zeros_like(drawn_B)
        token_B, status_B = jnp.where(puts_B, put_B, drawn_B), jnp.where(is_over_B, DONE, RUN)
        return state, Step(token_B, no_B, no_B == 0, puts_B, status_B)

    def account(self, state_row: BlankLineState, token_ids: Sequence[int], forced: Sequence[bool]) -> Account:
        has_ended, n = int(state_row.phase_B) == ANSWER, len(token_ids)
        offset = int(state_row.offset_B) if has_ended else n
        answer = token_ids[offset:]
        is_stopped = len(answer) > 0 and bool(np.asarray(self.eos_V)[answer[-1]])
        thinking = n if int(state_row.phase_B) == THINK else int(state_row.thinking_B)
        reason = "natural" if int(state_row.phase_B) != THINK else None
        finish = "stop" if is_stopped else "length"
        steps = int(state_row.steps_B)
        return Account(thinking, offset, len(answer) - is_stopped, steps, reason, finish, {"blank_line": bool(reason)})

    def thinking_tokens(self, state_row: BlankLineState, n_tokens: int) -> int:
        return n_tokens if int(state_row.phase_B) == THINK else int(state_row.thinking_B)

    def extend(self, state_row: BlankLineState, token_ids: Sequence[int], n_tokens: int) -> BlankLineState:
        if int(state_row.length_B) + len(token_ids) >= int(state_row.room_B):
            raise BadInput(f"{len(token_ids)} tokens leave no room")
        return dataclasses.replace(state_row, length_B=np.int32(int(state_row.length_B) + len(token_ids)))

    def refork(self, state_row: BlankLineState, settings: BlankLineSettings) -> BlankLineState:
        return dataclasses.replace(state_row, room_B=np.int32(settings.room))


def header(config: BlankLineConfig, tokenizer: Any) -> tuple[int, ...]:
    return tuple(tokenizer.encode_markup(config.header))


def admit(
    config: BlankLineConfig, tokenizer: Any, *, prompt_length: int, max_length: int, max_new_tokens: int
) -> BlankLineSettings:
    room = min(max_length - prompt_length, max_new_tokens)
    ids = tuple(tokenizer.encode_markup(config.answer_header))
    if room <= len(ids) or len(ids) > MOST:
        raise BadInput(f"prompt of {prompt_length} tokens: room {room} for a header of {len(ids)}; raise max_length")
    return BlankLineSettings(room, ids)


def build(tokenizer: Any, vocab_size: int, configs: Sequence[BlankLineConfig]) -> BlankLine:
    texts = tokenizer.token_bytes()
    newline_V, eos_V, absent_V = (np.zeros(vocab_size, bool) for _ in range(3))
    newline_V[: len(texts)] = [text.endswith(b"\n") for text in texts]
    eos_V[list(tokenizer.eos_ids)] = True
    absent_V[len(texts) :] = True
    return BlankLine(newline_V, eos_V, absent_V)


CONTROL = Control(BlankLineConfig, header, admit, build, label=lambda config: "until a blank line")
