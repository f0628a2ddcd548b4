"""Flash attention on a CPU: tiles in vector registers, compiled by numba, on the threads of the caller's choice.

`forward.py`, `backward.py` and `decode.py` are compiled; `run_forward.py`, `run_backward.py` and `run_decode.py` cut a
call into tasks for them, which read it as `plan.py` lays it out.
"""

from refattn.methods.flash.kernel_numba.run_backward import backward
from refattn.methods.flash.kernel_numba.run_decode import decode
from refattn.methods.flash.kernel_numba.run_forward import forward

__all__ = ["backward", "decode", "forward"]
