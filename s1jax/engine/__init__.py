"""The decode engine: sampling, the compiled window of steps, and the scheduling of rows around it."""
