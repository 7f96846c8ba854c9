"""Students, one kind a file: load, encode, save."""
