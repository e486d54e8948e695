"""Metrics, pictures and the report: what a person reads to judge a model. Imports core only."""
