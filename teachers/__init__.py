"""Teachers, one kind a file: each scores query-document pairs in its own unit."""
