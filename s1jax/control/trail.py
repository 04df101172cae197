"""The last ids of each row, newest first: how far a match reaches back, and whether they end in a loop.

Letters beside those of `s1jax.parallel.axes`: W recent id · X recent id that the loop detector compares with
· P pattern size.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from s1jax.engine.protocol import Array

NO_ID = -1
ROOT = 0  # match state where nothing has been read (`s1jax.control.matching`)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trail:
    """What is known of the last ids kept, so that ids can be taken back. Only drawn ids since the last restart count.

    Only ignored ends without a string take ids back and go on from there. Should several in a row take back many more
    ids than were kept meanwhile, what lies more than W ids back is forgotten; W is four times the longest delimiter.

    Attributes:
      matched_BW: match state after each id; ROOT where none counts.
      size_BW: bytes of each id; 0 where none counts.
      newline_BW: whether its bytes end in a newline, for forced ids too.
      drawn_BX: the ids themselves, W + P of them; NO_ID where none counts.
      run_BWP: how many ids in a row, up to each id, equal the id p places before them.
    """

    matched_BW: Array
    size_BW: Array
    newline_BW: Array
    drawn_BX: Array
    run_BWP: Array

    def pending(self, bytes_B: Array) -> Array:
        """How many of the last ids hold the last `bytes_B` bytes."""
        reach_BW = jnp.cumsum(self.size_BW, axis=1, dtype=jnp.int32)
        short_B = jnp.sum(reach_BW < bytes_B[:, None], axis=1, dtype=jnp.int32)
        known_B = jnp.sum(self.size_BW > 0, axis=1, dtype=jnp.int32)
        return jnp.minimum(short_B + (bytes_B > 0), known_B)

    def newline_before(self, rewind_B: Array) -> Array:
        """Whether the last id that is left after a rewind ends in a newline; False where none is left."""
        return jnp.take_along_axis(self.newline_BW, rewind_B[:, None], axis=1)[:, 0]

    def detect(
        self, drawn_B: Array, min_pattern_B: Array, max_pattern_B: Array, min_count_B: Array
    ) -> tuple[Array, Array]:
        """Were the drawn ids kept: their run at each period `[B, P]`, and whether the ids then end in a loop `[B]`."""
        n_periods = self.run_BWP.shape[2]
        is_same_BP = self.drawn_BX[:, :n_periods] == drawn_B[:, None]
        run_BP = jnp.where(is_same_BP, self.run_BWP[:, 0] + 1, 0)
        period_P = jnp.arange(1, n_periods + 1, dtype=jnp.int32)
        is_asked_BP = (period_P >= min_pattern_B[:, None]) & (period_P <= max_pattern_B[:, None])
        # p ids repeated n times: each of the last p * (n - 1) equals the one p places before it.
        is_loop_BP = run_BP >= period_P * (min_count_B[:, None] - 1)
        return run_BP, jnp.any(is_asked_BP & is_loop_BP, axis=1)

    def follow(self, entry: "Trail", rewind_B: Array, is_kept_B: Array, restarts_B: Array) -> "Trail":
        """After taking back `rewind_B` ids and, where one is kept, adding `entry` (W = X = 1); emptied at a restart."""

        def shifted(x_BW: Array, new_BW: Array, empty: int) -> Array:
            return _shift(x_BW, new_BW, empty, rewind_B, is_kept_B)

        def restarted(x_BW: Array, new_BW: Array, empty: int) -> Array:
            return jnp.where(_column(restarts_B, x_BW), empty, shifted(x_BW, new_BW, empty))

        return Trail(
            matched_BW=restarted(self.matched_BW, entry.matched_BW, ROOT),
            size_BW=restarted(self.size_BW, entry.size_BW, 0),
            newline_BW=shifted(self.newline_BW, entry.newline_BW, False),
            drawn_BX=restarted(self.drawn_BX, entry.drawn_BX, NO_ID),
            run_BWP=restarted(self.run_BWP, entry.run_BWP, 0),
        )


def empty_trail(n_rows: int, n_recent: int, max_pattern: int) -> Trail:
    """NumPy arrays of rows that begin; sizes W and P."""
    return Trail(
        matched_BW=np.full((n_rows, n_recent), ROOT, np.int32),
        size_BW=np.zeros((n_rows, n_recent), np.int32),
        newline_BW=np.zeros((n_rows, n_recent), bool),
        drawn_BX=np.full((n_rows, n_recent + max_pattern), NO_ID, np.int32),
        run_BWP=np.zeros((n_rows, n_recent, max_pattern), np.int32),
    )


def _shift(x_BW: Array, new_BW: Array, empty: int, rewind_B: Array, is_kept_B: Array) -> Array:
    """`x_BW` without its first `rewind_B` entries, behind the new one where one is kept; [B, W] or [B, W, P]."""
    length = x_BW.shape[1]
    place_W = jnp.arange(length, dtype=jnp.int32)
    source_BW = place_W + (rewind_B - is_kept_B)[:, None]
    is_new_BW = is_kept_B[:, None] & (place_W == 0)
    if x_BW.ndim == 3:
        source_BW, is_new_BW = source_BW[:, :, None], is_new_BW[:, :, None]
    moved_BW = jnp.take_along_axis(x_BW, jnp.clip(source_BW, 0, length - 1), axis=1)
    return jnp.where(is_new_BW, new_BW, jnp.where(source_BW < length, moved_BW, empty))


def _column(x_B: Array, like: Array) -> Array:
    return x_B.reshape(-1, *[1] * (like.ndim - 1))
