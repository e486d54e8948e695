"""Scan planes."""
