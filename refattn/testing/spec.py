"""How a kernel is called and what it claims: the record that check_kernel runs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from refattn._core.choice import Capabilities
from refattn.contract import Contract, resolve, softmax_bound
from refattn.layouts import Layout
from refattn.layouts.orders import ORDERS
from refattn.methods.exact.interface import attention

# Arguments of attention that a kernel may take, those of dropout, which come together, and those that come with ways of
# storing its operands.
ARGUMENTS = ("mask", "bias", "is_causal", "scale", "softcap", "sinks")
DROPOUT = ("dropout_mask", "dropout_p")
TABLES = ("block_table", "cu_seqlens_q", "cu_seqlens_k", "seqused_k")
STORAGE = ("descale", *TABLES)
# The array that the output is to be written to.
OUT = "out"
LAWS = ("normal", "peaked", "offset", "rising", "coded")
# Checks of check_kernel, and those of laws, which are functions in refattn.testing.laws.
LAW_CHECKS = (
    "check_forward", "check_lse", "check_tile_edges", "check_layouts", "check_empty_rows", "check_causality",
    "check_masked_nan", "check_key_permutation", "check_logit_shift", "check_head_independence",
    "check_batch_independence", "check_nan_containment", "check_value_linearity", "check_split_merge", "check_strides",
    "check_determinism", "check_inputs_untouched",
)  # fmt: skip
CHECKS = ("probes", *LAWS, "smollm2", *ARGUMENTS, "dropout_mask", "empty_rows", "gradients", *STORAGE, *LAW_CHECKS)

LAYOUTS = ORDERS
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
        "dropout_mask" and "dropout_p", named together: a boolean array (B, H, L, S), True where a weight is kept and
        multiplied by 1/(1 - p), and p; where they are not varied, None and 0.0. A kernel that draws for itself is held
        against the mask that it drew by `check`.
        "cu_seqlens_q", "cu_seqlens_k", "seqused_k" and "block_table" say that the operands are packed or paged: see
        Notes. "descale" is a tuple of float32 arrays (B, H, 1), (B, Hk, 1) and (B, Hk, 1) that query, key and value are
        to be multiplied by, different in each batch entry and head, and in each block where the layout's `descale` says
        so; None where it is not varied. "out" is an array that the output is to be written to, in the contract's dtype
        and the order of the layout; cells that are not written, and cells around it that are, are told. The kernel
        returns it, or None in its place.
    returns : sequence of str, optional
        ("output",), ("output", "lse") or ("output", "lse2"): lse2 is in base 2. Both have shape (B, H, L) in every
        layout, and (H, T) where queries are packed, or (T, H) if the layout's `lse` is "th".
    contract : Contract or str, optional
        The numerics; its query, key and value formats are the inputs' dtypes. A string means ``contract.flash`` of it.
        Default: flash("float32").
    layout : {"bhld", "blhd", "lbhd"} or layouts.Layout, default "bhld"
        Order of the axes of query, key, value and output; a `Layout` says the size of pages too, and more.
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
        Reasons by name of check, of `check_kernel` or of ``refattn.testing.laws``. An expected failure is listed and no
        finding; one that passes is a finding. No law asks for an argument whose own check is expected to fail, and no
        probe for rows without keys where "empty_rows" is.

    Raises
    ------
    TypeError
        For fields of the wrong kind.
    ValueError
        For values that are none of the choices.

    Notes
    -----
    How the operands are stored follows from what the kernel accepts; all tables are int32 arrays of its own library,
    and masks, biases and the lengths in `computes` hold for each sequence by itself, with its own L and S:

    - "cu_seqlens_q" (B + 1,): query and output are packed, (Tq, H, E) and (Tq, H, Ev).
    - "cu_seqlens_k" (B + 1,): key and value are packed, (Tk, Hk, E) and (Tk, Hk, Ev).
    - "block_table" (B, max_pages): key and value are pages, (P, page_size, Hk, E). Their lengths come as "seqused_k" or
      "cu_seqlens_k", one of which must be accepted too. Entries past a sequence's last page name a page of NaN.
    - "seqused_k" (B,): numbers of keys; without pages, key and value are longer than that.

    Cells that belong to no token hold NaN: page tails, unused pages, what lies past ``seqused_k``. A kernel that lets
    them take part, or multiplies them by a weight of 0, is wrong. Of each of the kernel's `lengths` (L, S) and some
    shorter ones a batch is made, of `batch` + 2 sequences. Each of the tables has a check by its own name with what it
    is for: sequences without queries or without keys, one key, both sides of page edges, shared pages.

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
    layout: str | Layout = "bhld"
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
        self._keep("accepts", tuple(_names("accepts", self.accepts, (*ARGUMENTS, *DROPOUT, *STORAGE, OUT))))
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
        if self.numerics().probability_scale is not None:
            rule = "be one without scales of weights; check judges the arrays of a kernel with them"
            raise ValueError(_message("contract", rule, self.numerics().describe()))
        if "block_table" in self.accepts and not {"seqused_k", "cu_seqlens_k"} & set(self.accepts):
            rule = 'name "seqused_k" or "cu_seqlens_k" beside "block_table"'
            raise ValueError(_message("accepts", rule, ", ".join(self.accepts)))
        if len(set(DROPOUT) & set(self.accepts)) == 1:
            rule = 'name "dropout_mask" and "dropout_p" together'
            raise ValueError(_message("accepts", rule, ", ".join(self.accepts)))
        if not isinstance(self.layout, Layout) and self.layout not in LAYOUTS:
            rule = f"be one of {', '.join(map(repr, LAYOUTS))} or a layouts.Layout"
            raise ValueError(_message("layout", rule, repr(self.layout)))
        if self.arrays not in LIBRARIES:
            raise ValueError(_message("arrays", f"be one of {', '.join(map(repr, LIBRARIES))}", self.arrays))
        if self.arrays == "jax" and OUT in self.accepts:
            raise ValueError(
                _message("accepts", "not name out where arrays is 'jax', whose arrays are not written to", OUT)
            )
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
    def stored(self) -> Layout:
        """The layout as a record."""
        return self.layout if isinstance(self.layout, Layout) else Layout(order=self.layout)

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables that the kernel takes, which say that its operands are packed, paged or padded."""
        return tuple(name for name in TABLES if name in self.accepts)

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
