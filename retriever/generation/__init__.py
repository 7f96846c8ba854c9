"""Queries for collections that have none: written by a generator, filtered by a critic, kept with their lineage."""
