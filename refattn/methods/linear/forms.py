"""A checked call of linear attention run in one of its forms, and its results turned back."""

from __future__ import annotations

from refattn._core.arrays import Array
from refattn.methods.linear import reference
from refattn.methods.linear.arguments import Linear, state_of
from refattn.methods.linear.records import LinearResult
from refattn.methods.linear.reference import Sums


def sums_of(call: Linear, form: str, chunk: int) -> Sums:
    """Numerators, normalisers and memory by one of the forms."""
    given, xp = (call.phi_Q, call.phi_K, call.V, call.memory), call.call.xp
    if form == "quadratic":
        numerator, Z = reference.quadratic(*given, keep=call.keep, xp=xp)
        memory = call.before
        if call.keeps_state:
            memory = reference.remember(memory, call.phi_K, call.V, xp=xp)
        return Sums(numerator, Z, memory)
    if form == "recurrent":
        return reference.recurrent(*given, causal=call.causal, xp=xp)
    return reference.chunked(*given, causal=call.causal, chunk=chunk, xp=xp)


def quotient(call: Linear, sums: Sums) -> Array:
    """The output (..., L, Ev), in float64; 0 in rows that see nothing."""
    O = sums.numerator
    if call.normalize:
        O = reference.normalised(O, sums.Z, least=call.least, eps=call.eps, xp=call.call.xp)
    return call.shown(O)


def run(call: Linear, form: str, chunk: int) -> LinearResult:
    """Output as it is returned, state and normaliser."""
    of_call, xp = call.call, call.call.xp
    sums = sums_of(call, form, chunk)
    state = state_of(sums.memory, xp) if call.keeps_state else None
    normalizer = xp.squeeze(of_call.headed(call.shown(sums.Z), 2), axis=-1)
    return LinearResult(of_call.rounded(of_call.headed(quotient(call, sums), 2)), state, normalizer)
