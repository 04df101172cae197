"""Reading answers out of completions and comparing them with reference answers. No JAX."""
