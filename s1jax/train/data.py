"""From data sets to rendered examples, with a policy for those that are too long."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Literal

from s1jax.config import BadInput, Positive, by_content
from s1jax.tables import load_rows
from s1jax.text.formats import FORMATS, TRACES
from s1jax.text.render import Row, render_row
from s1jax.text.tokens import PRESETS, Markers, Tokenizer


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which rows, and how they are rendered.

    Attributes:
      rows: data sets (file, folder or hub id), one after another; each row in one of the formats of `docs/formats.md`.
      format: what rows are read as, a key of `FORMATS`; None: each row as the first whose columns it has.
      split: of a hub data set or a saved one.
      train_on: of a chat with several answers, `last` trains on the last one, `all` on all of them.
      preset: thinking markers, a key of `PRESETS`.
      markers: four texts of one's own instead of a preset.
      teacher: which trace where a row has several (`deepseek`, `gemini`).
      system: a system turn; None for what the chat template puts by itself.
      answer_prefix: put before an answer behind thinking that lacks it; None for none.
      block: most tokens of an example (upstream's block size).
      over_length: what happens to longer ones. `keep` cuts them, and then their answer is lost.
    """

    rows: str | tuple[str, ...] = by_content()
    format: str | None = None
    split: str = "train"
    train_on: Literal["last", "all"] = "last"
    preset: str = "s1"
    markers: Markers | None = None
    teacher: str = ""
    system: str | None = None
    answer_prefix: str | None = "Answer: "
    block: Positive = 32768
    over_length: Literal["error", "drop", "keep"] = "error"


@dataclasses.dataclass(frozen=True)
class Examples:
    """Rendered rows, and what became of those over the block."""

    rows: tuple[Row, ...]
    dropped: int
    cut: int

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of every token and where the loss begins."""
        found = hashlib.sha256()
        for row in self.rows:  # all at once would be a text several times as large as the rows
            found.update(repr(row).encode())
        return found.hexdigest()

    def describe(self) -> str:
        """One line: rows, tokens, the share in the loss, the longest, and what was dropped or cut."""
        lengths = [len(row.ids) for row in self.rows]
        loss = sum(row.loss_tokens for row in self.rows)
        text = f"{len(lengths):,} rows, {sum(lengths):,} tokens ({loss:,} in the loss), the longest {max(lengths):,}"
        lost = [f"{n:,} {what}" for n, what in ((self.dropped, "dropped"), (self.cut, "cut")) if n]
        return text + (f"; over the block: {', '.join(lost)}" if lost else "")


def load_examples(config: DataConfig, tokenizer: Tokenizer, rows: str | tuple[str, ...] | None = None) -> Examples:
    """Render every row of `config.rows` (or of `rows`, with the same settings).

    Raises:
      BadInput: no such data, preset, format or teacher; a row in none of the formats; a row over the block under the
        policy `error`; a row that has no loss token left. Rows are named.
    """
    if config.preset not in PRESETS:
        raise BadInput(f"data.preset={config.preset!r} is not known; use one of {', '.join(PRESETS)}")
    if config.teacher not in TRACES:
        raise BadInput(f"data.teacher={config.teacher!r} is not known; use one of {', '.join(map(repr, TRACES))}")
    if config.format is not None and config.format not in FORMATS:
        raise BadInput(f"data.format={config.format!r} is not known; use one of {', '.join(FORMATS)}")
    markers = config.markers or PRESETS[config.preset]
    sources = config.rows if rows is None else rows
    rendered = []
    for source in (sources,) if isinstance(sources, str) else sources:
        for number, row in enumerate(load_rows(source, split=config.split), 1):
            rendered.append(
                render_row(
                    row,
                    tokenizer,
                    markers,
                    where=f"{source} row {number}",
                    teacher=config.teacher,
                    system=config.system,
                    answer_prefix=config.answer_prefix,
                    train_on=config.train_on,
                    format=config.format,
                )
            )
    return within_block(rendered, config.block, config.over_length)


def within_block(rows: Sequence[Row], block: int, policy: str) -> Examples:
    """Apply the policy for rows of more than `block` tokens. Raises BadInput as `load_examples`."""
    long = [row for row in rows if len(row.ids) > block]
    if long and policy == "error":
        longest = max(len(row.ids) for row in long)
        named = ", ".join(f"{row.id} ({len(row.ids)})" for row in long[:3])
        raise BadInput(
            f"{len(long)} of {len(rows)} rows are longer than data.block={block} tokens: {named}; set data.block="
            f"{longest}, or data.over_length=drop, or =keep (it cuts them, and what is trained on cut answers does not "
            "learn to stop)"
        )
    kept = [row for row in rows if len(row.ids) <= block or policy == "keep"]
    cut = [row.cut(block) if len(row.ids) > block else row for row in kept]
    if not cut:
        raise BadInput(f"no row is left: all {len(rows)} are longer than data.block={block} tokens; set a longer block")
    for row in cut:
        if not 0 < row.prompt_length < len(row.ids):
            raise BadInput(
                f"row {row.id!r} has no loss token: its prompt takes {row.prompt_length} of {len(row.ids)} tokens "
                f"(data.block={block}); drop the row or set a longer block"
            )
    return Examples(tuple(cut), len(rows) - len(kept), len(long) if policy == "keep" else 0)
