"""A collection of the documentation that every installation carries, and the demonstration on it."""
