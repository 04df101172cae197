"""Test-time scaling in JAX: fine-tune on a thousand reasoning traces, then set how long the model thinks."""
