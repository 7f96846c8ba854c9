"""Indexes, one kind a file: build, open, search."""
