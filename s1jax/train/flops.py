"""What a step costs in floating-point operations, and what the devices could do: the two halves of MFU."""

from collections.abc import Iterable
from typing import Any

from s1jax.models.decoder import DecoderConfig
from s1jax.models.lora import LoraConfig, sizes

# Dense bfloat16 peak of one device by the beginning of JAX's `device_kind`, from the vendors' data sheets.
PEAK_FLOPS = {
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
}


def matmul_parameters(config: DecoderConfig) -> int:
    """Parameters that every token is multiplied with: all matrices but the embedding, the head also where tied."""
    heads = config.D * config.K * config.H * (2 * config.G + 2)
    return config.L * (heads + 3 * config.D * config.F) + config.D * config.V


def train_flops(config: DecoderConfig, lengths: Iterable[int], lora: LoraConfig | None = None) -> float:
    """Operations of forward and backward pass over examples of these lengths; recomputation is not counted.

    Six a matrix parameter and token, and attention within each example with the masked half left out:
    `6 * L * K * G * H * length^2` (PaLM, arXiv 2204.02311, appendix B, causal halved). Matrices that only carry
    adapters cost four: they have no gradient of their own.
    """
    lengths = list(lengths)
    attention = 6 * config.L * config.K * config.G * config.H * sum(length * length for length in lengths)
    weights = 6 * matmul_parameters(config)
    if lora is not None:
        weights = 4 * matmul_parameters(config) + 6 * sum(sizes(config, lora).values())
    return float(weights * sum(lengths) + attention)


def peak_flops(devices: Iterable[Any]) -> float | None:
    """The sum of the devices' peaks, or None where one is not known (a CPU)."""
    peaks = [
        next((peak for kind, peak in PEAK_FLOPS.items() if device.device_kind.startswith(kind)), None)
        for device in devices
    ]
    return None if None in peaks else float(sum(peak for peak in peaks if peak))
