"""Supervised fine-tuning: rows -> packed batches -> a jitted step on a mesh -> checkpoints, metrics and `hf/`."""
