"""Turns of conversations: read with their history, rewritten to stand alone, told apart, and searched with."""
