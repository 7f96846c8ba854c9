"""Evaluation: measures under one stated rule, significance, latency, the report."""
