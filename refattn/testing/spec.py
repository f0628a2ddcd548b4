"""How a kernel is called and what it claims: the record that check_kernel runs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from refattn._core.choice import Capabilities
from refattn.contract import Contract, resolve, softmax_bound
from refattn.methods.exact.interface import attention

# Arguments of attention that a kernel may take, and those that come with ways of storing its operands.
ARGUMENTS = ("mask", "bias", "is_causal", "scale", "softcap", "sinks")
STORAGE = ("descale", "block_table", "cu_seqlens_q", "cu_seqlens_k", "seqused_k")
LAWS = ("normal", "peaked", "offset", "rising", "coded")
CHECKS = (*LAWS, "smollm2", *ARGUMENTS, "empty_rows", "gradients", *STORAGE)

LAYOUTS = ("bhld", "blhd")
LIBRARIES = ("numpy", "torch", "jax", "cupy")
LENGTHS = ((1, 1), (1, 129), (16, 16), (63, 65), (128, 128), (127, 257), (257, 65))

Computes = Mapping[str, Any] | Callable[[int, int], Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class KernelSpec:
    """A kernel, how to call it, what it computes, and the numerics it claims.

    ``function(query, key, value, **{name: value for name in accepts})`` is called with arrays of the kernel's own
    library, on its device, in the dtypes of its contract.

    Parameters
    ----------
    function : callable
        The kernel. It returns the output, or a tuple in the order of `returns`.
    method : callable, default refattn.attention
        The public function of refattn whose values are right.
    computes : mapping or callable, optional
        Arguments of `method` that the kernel always computes with, such as
        ``{"mask": masks.causal(anchor="lower_right")}``; or a function of (L, S) that returns them.
    accepts : sequence of str, optional
        Names of the arguments that the kernel takes and the judge varies: "mask", "bias", "is_causal", "scale",
        "softcap", "sinks". A mask comes as a boolean array and a bias as one in the query's dtype, both (B, H, L, S);
        sinks (H,) in the query's dtype; scale always as a number; what is not varied as None, and is_causal as False.
        "descale", "block_table", "cu_seqlens_q", "cu_seqlens_k" and "seqused_k" may be named, get None, and are listed
        as not run.
    returns : sequence of str, optional
        ("output",), ("output", "lse") or ("output", "lse2"): lse2 is in base 2. Both have shape (B, H, L) in every
        layout.
    contract : Contract or str, optional
        The numerics; its query, key and value formats are the inputs' dtypes. A string means ``contract.flash`` of it.
        Default: flash("float32").
    layout : {"bhld", "blhd"}, default "bhld"
        Order of the axes of query, key, value and output.
    arrays : {"numpy", "torch", "jax", "cupy"}, default "numpy"
        Library of the arrays that the kernel gets.
    device : object, optional
        Device of these arrays, in the library's own words.
    batch : sequence of int, optional
        Batch sizes to run.
    heads : tuple of int, optional
        Query heads H and key heads Hk.
    dims : sequence of int or (int, int), optional
        Numbers of features to run: E, or (E, Ev).
    lengths : sequence of (int, int), optional
        Pairs (L, S) to run. Default: both sides of tile edges.
    backward : callable, optional
        ``backward(grad_output, query, key, value, output, lse, **accepted)``, returning the gradients. It is kept and
        listed as not run: gradients are not judged yet.
    expected_failures : mapping of str to str, optional
        Reasons by name of check. An expected failure is listed and no finding; one that passes is a finding.

    Raises
    ------
    TypeError
        For fields of the wrong kind.
    ValueError
        For values that are none of the choices.

    Examples
    --------
    >>> import refattn as ra
    >>> from refattn.testing import KernelSpec
    >>> KernelSpec(ra.attention, accepts=("is_causal", "scale")).name
    'attention'
    """

    function: Callable[..., Any]
    method: Callable[..., Any] = attention
    computes: Computes = field(default_factory=dict)
    accepts: Sequence[str] = ()
    returns: Sequence[str] = ("output",)
    contract: Contract | str | None = None
    layout: str = "bhld"
    arrays: str = "numpy"
    device: object = None
    batch: Sequence[int] = (1, 2)
    heads: tuple[int, int] = (4, 2)
    dims: Sequence[int | tuple[int, int]] = (64, (192, 128))
    lengths: Sequence[tuple[int, int]] = LENGTHS
    backward: Callable[..., Any] | None = None
    expected_failures: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what can't be run, and bring sequences into one form."""
        for name in ("function", "method"):
            if not callable(getattr(self, name)):
                raise TypeError(_message(name, "be callable", type(getattr(self, name)).__name__))
        if self.backward is not None and not callable(self.backward):
            raise TypeError(_message("backward", "be callable or None", type(self.backward).__name__))
        _check_method(self.method)
        if not callable(self.computes):
            self._keep("computes", dict(_names("computes", self.computes, ARGUMENTS)))
        elif isinstance(self.computes, type):
            raise TypeError(_message("computes", "be a mapping or a function of (L, S)", self.computes.__name__))
        self._keep("accepts", tuple(_names("accepts", self.accepts, (*ARGUMENTS, *STORAGE))))
        if not callable(self.computes) and (both := set(self.accepts) & set(self.computes)):
            raise ValueError(
                _message("computes and accepts", "name each argument once", f"{', '.join(sorted(both))} in both")
            )
        self._keep("returns", tuple(_names("returns", self.returns, ("output", "lse", "lse2"))))
        if self.returns not in (("output",), ("output", "lse"), ("output", "lse2")):
            rule = "be ('output',), ('output', 'lse') or ('output', 'lse2')"
            raise ValueError(_message("returns", rule, self.returns))
        if self.contract is not None:
            self._keep("contract", resolve(self.contract, "float32"))
        for name, choices in (("layout", LAYOUTS), ("arrays", LIBRARIES)):
            if getattr(self, name) not in choices:
                raise ValueError(_message(name, f"be one of {', '.join(map(repr, choices))}", getattr(self, name)))
        self._keep("batch", _sizes("batch", self.batch))
        heads = _sizes("heads", self.heads)
        if len(heads) != 2 or heads[0] % heads[1]:
            raise ValueError(_message("heads", "be (H, Hk) with H a multiple of Hk", self.heads))
        self._keep("heads", heads)
        self._keep("dims", _pairs("dims", self.dims))
        self._keep("lengths", _pairs("lengths", self.lengths))
        self._keep("expected_failures", dict(_names("expected_failures", self.expected_failures, CHECKS)))

    @property
    def features(self) -> tuple[tuple[int, int], ...]:
        """The dims as pairs (E, Ev)."""
        return _pairs("dims", self.dims)

    @property
    def name(self) -> str:
        """The function's name."""
        return str(getattr(self.function, "__name__", type(self.function).__name__))

    def arguments(self, L: int, S: int) -> dict[str, Any]:
        """Return what the kernel always computes with.

        Parameters
        ----------
        L, S : int
            Number of queries and of keys.

        Returns
        -------
        dict
            Keyword arguments of `method`.
        """
        if not callable(self.computes):
            return dict(self.computes)
        return dict(_names("computes", self.computes(L, S), ARGUMENTS))

    def numerics(self) -> Contract:
        """Return the contract, or that of float32 where none was declared.

        Returns
        -------
        Contract
            The contract.
        """
        return resolve(self.contract, "float32")

    def _keep(self, name: str, value: object) -> None:
        """Store a field in its one form."""
        object.__setattr__(self, name, value)


def _message(name: str, rule: str, got: object) -> str:
    """The message about a field."""
    return f"KernelSpec: {name} must {rule}; got {got if isinstance(got, str) else repr(got)}."


def _check_method(method: Callable[..., Any]) -> None:
    """A public function whose values are softmax attention's, with a proven bound."""
    capabilities = getattr(method, "capabilities", None)
    if not isinstance(capabilities, Capabilities):
        name = getattr(method, "__name__", repr(method))
        raise TypeError(_message("method", "be a public function of refattn", name))
    if capabilities.bound is None:
        raise ValueError(f"KernelSpec: method must have a proven bound; {capabilities.function} has none yet.")
    if capabilities.bound is not softmax_bound:
        raise ValueError(
            f"KernelSpec: method must be a form of softmax attention; got {capabilities.function}, whose values this "
            "judge does not compute."
        )


def _names(name: str, given: Any, choices: tuple[str, ...]) -> Any:
    """Words, or a mapping by words, that are all among the choices."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        kind = "a mapping" if name in ("computes", "expected_failures") else "a sequence of names"
        raise TypeError(_message(name, f"be {kind}", type(given).__name__))
    if name in ("computes", "expected_failures") and not isinstance(given, Mapping):
        raise TypeError(_message(name, "be a mapping", type(given).__name__))
    for word in given:
        if word not in choices:
            raise ValueError(_message(name, f"name only {', '.join(choices)}", word))
    return given


def _size(name: str, value: object) -> int:
    """A positive integer."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(_message(name, "hold integers", type(value).__name__))
    size = operator.index(value)
    if size < 1:
        raise ValueError(_message(name, "hold positive integers", str(size)))
    return size


def _sizes(name: str, given: object) -> tuple[int, ...]:
    """At least one positive integer."""
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise TypeError(_message(name, "be a sequence of at least one integer", given))
    return tuple(_size(name, value) for value in given)


def _pairs(name: str, given: object) -> tuple[tuple[int, int], ...]:
    """Pairs of positive integers; one integer alone stands for both where the field allows it."""
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise TypeError(_message(name, "be a sequence of at least one pair of integers", given))
    found = []
    for entry in given:
        sizes = _sizes(name, entry) if isinstance(entry, Sequence) else (_size(name, entry),)
        if len(sizes) != 2 and not (len(sizes) == 1 and name == "dims" and not isinstance(entry, Sequence)):
            rule = "hold pairs (E, Ev) or numbers E" if name == "dims" else "hold pairs (L, S)"
            raise ValueError(_message(name, rule, entry))
        found.append((sizes[0], sizes[-1]))
    return tuple(found)
