"""Sections and tables of the experiment file, a file each: every key with its type, its default and what it means."""
