"""What a kernel claims about its numerics, and how far it may then be from the exact answer."""

from refattn.contract.presets import eager, flash, fp8, mxfp8, numba, nvfp4, resolve, tf32
from refattn.contract.problem import Bound, Problem
from refattn.contract.record import Contract
from refattn.contract.softmax import softmax_bound

__all__ = [
    "Bound",
    "Contract",
    "Problem",
    "eager",
    "flash",
    "fp8",
    "mxfp8",
    "numba",
    "nvfp4",
    "resolve",
    "softmax_bound",
    "tf32",
]
