"""Text of prompts and rows, and the tokens that a model reads of them."""
