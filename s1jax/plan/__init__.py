"""Planning for hardware that is not here: the real step is compiled for a named topology and its bytes read off."""
