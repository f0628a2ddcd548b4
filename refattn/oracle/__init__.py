"""Exact attention with a proven error radius for every number, down to correctly rounded results."""

from refattn.oracle.certified import Certified, certified
from refattn.oracle.digest import digest
from refattn.oracle.rounded import rounded

__all__ = ("Certified", "certified", "digest", "rounded")
