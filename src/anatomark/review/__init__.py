"""Predictions corrected by a person: the state of each point, its files, and what training learns from them."""

from anatomark.review.record import CaseReview, Conflict, Earlier, Point, State
from anatomark.review.review import Review

__all__ = ["CaseReview", "Conflict", "Earlier", "Point", "Review", "State"]
