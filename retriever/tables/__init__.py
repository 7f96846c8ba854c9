"""A collection's tables on disk: documents, their fields, and queries."""
