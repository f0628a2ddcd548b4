"""What a kernel claims about its numerics, and how far it may then be from the exact answer."""

from refattn.contract.presets import eager, flash, fp8, numba, resolve, tf32
from refattn.contract.record import Contract
from refattn.contract.softmax import Bound, Problem, softmax_bound

__all__ = ["Bound", "Contract", "Problem", "eager", "flash", "fp8", "numba", "resolve", "softmax_bound", "tf32"]
