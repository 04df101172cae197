"""Curation of reasoning traces: sources to supervised fine-tuning rows. No JAX here; a solver is passed in."""
