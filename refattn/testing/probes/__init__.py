"""Probes: inputs whose right answer is known without a tolerance, and what a kernel does with them read out."""

from refattn.testing.probes.interface import probe
from refattn.testing.probes.readings import Readings

__all__ = ("Readings", "probe")
