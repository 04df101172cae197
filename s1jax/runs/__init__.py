"""Folders that runs write: what they were made from, and who may write in them. No JAX."""
