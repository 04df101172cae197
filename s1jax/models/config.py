"""The sizes and switches of a decoder, and its rotary frequencies. No JAX, no files."""

import dataclasses
import math
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le

Dimension = Annotated[int, Ge(1), Le(2**24)]
AboveZero = Annotated[float, Gt(0)]


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretch of long wavelengths (transformers `rope_type: llama3`).

    Attributes:
      factor: by which long wavelengths are stretched.
      low_freq_factor: wavelengths above `original_max_position` over it are stretched whole.
      high_freq_factor: wavelengths below `original_max_position` over it stay; between the two it is blended.
      original_max_position: longest sequence before the stretch.
    """

    factor: AboveZero
    low_freq_factor: AboveZero
    high_freq_factor: AboveZero
    original_max_position: Dimension


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes by their letters, and what a family switches.

    Attributes:
      family: a key of `s1jax.models.FAMILIES`.
      D: width of the model.
      K: key and value heads.
      G: query heads per kv head; the model has `K * G` query heads.
      H: width of a head.
      F: width of the feed-forward.
      V: vocabulary.
      L: layers.
      rope_theta: base of the rotary embedding's wavelengths.
      norm_eps: added to the mean square in RMS norms.
      max_position: longest sequence.
      tied: the head is the transposed embedding.
      qkv_bias: biases on q, k and v.
      qk_norm: RMS norm per head on q and k.
      rope_scaling: Llama 3's stretch of the rotary embedding; None where positions are not stretched.
    """

    family: str
    D: Dimension
    K: Dimension
    G: Dimension
    H: Dimension
    F: Dimension
    V: Dimension
    L: Annotated[int, Ge(1), Le(10_000)]
    rope_theta: AboveZero = 1e6
    norm_eps: AboveZero = 1e-6
    max_position: Dimension = 32768
    tied: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    rope_scaling: RopeScaling | None = None

    @property
    def inverse_frequencies(self) -> np.ndarray:
        """Rotary inverse frequencies `[H/2]`, stretched where the family does so."""
        inverse = inverse_frequencies(self.rope_theta, self.H)
        return inverse if self.rope_scaling is None else _stretch(inverse, self.rope_scaling)


def inverse_frequencies(theta: float, width: int) -> np.ndarray:
    """Rotary inverse frequencies `[H/2]`, `1 / theta ** (2 i / H)` with every step rounded to float32.

    The rounding is part of the trained weights: at position 32,768 one unit in the last place of a frequency is 1e-3 in
    a cosine, and a form that is closer to the true value differs in 10 to 24 of 64 entries. So it is done here, in
    numpy: inside `jit` XLA folds the constant in that other form.
    """
    exponent = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    power = np.power(np.float64(theta), exponent.astype(np.float64)).astype(np.float32)
    return np.float32(1) / power


def _stretch(inverse: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Divide low frequencies by `factor`, keep high ones, blend between (transformers `_compute_llama3_parameters`)."""
    wavelength = np.float32(2 * math.pi) / inverse
    low = scaling.original_max_position / scaling.low_freq_factor
    high = scaling.original_max_position / scaling.high_freq_factor
    stretched = np.where(wavelength > low, inverse / scaling.factor, inverse)
    blend = (scaling.original_max_position / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - blend) * stretched / scaling.factor + blend * stretched
    return np.where((wavelength >= high) & (wavelength <= low), blended, stretched)
