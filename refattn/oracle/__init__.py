"""Exact attention with a proven error radius for every number, down to correctly rounded results."""

from refattn.oracle.climb import rounded
from refattn.oracle.hashing import digest
from refattn.oracle.interface import Certified, certified

__all__ = ("Certified", "certified", "digest", "rounded")
