"""The sizes and switches of a decoder, and its rotary frequencies. No JAX, no files."""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretch of long wavelengths (transformers `rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes by their letters, and what a family switches.

    Attributes:
      family: key of `FAMILIES`.
      D, K, G, H, F, V, L: sizes, in the letters of `axes`; the model has `K * G` query heads.
      rope_theta, norm_eps, max_position: as in the checkpoint's `config.json`.
      tied: the head is the transposed embedding.
      qkv_bias, qk_norm: biases on q, k and v; RMS norm per head on q and k.
      rope_scaling: None where positions are not stretched.
    """

    family: str
    D: int
    K: int
    G: int
    H: int
    F: int
    V: int
    L: int
    rope_theta: float = 1e6
    norm_eps: float = 1e-6
    max_position: int = 32768
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
