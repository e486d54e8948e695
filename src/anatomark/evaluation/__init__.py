"""Evaluation: errors against the truth, tables and the report."""
