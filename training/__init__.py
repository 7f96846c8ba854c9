"""Training: which documents, which losses, which loop."""
