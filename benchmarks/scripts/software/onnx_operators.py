"""ONNX's operators: in onnx's own reference, and in ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from refattn import masks
from refattn.testing.spec import LENGTHS
from software.record import CACHED, ONE_SEQUENCE, SPREADING, Entry, eager, entry


@dataclass(frozen=True)
class Node:
    """A model of one ONNX node; an input "" or None is left out, "mask" is boolean, names in capitals are integers."""

    operator: str
    opset: int
    dtype: str
    inputs: tuple[str, ...]
    attributes: tuple[tuple[str, Any], ...]
    domain: str = ""
    presents: bool = False

    def model(self) -> Any:
        """The model."""
        from onnx import TensorProto, helper

        kind = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[self.dtype]
        kinds = {"mask": TensorProto.BOOL, "SEQLENS": TensorProto.INT32, "TOTAL": TensorProto.INT32}
        outputs = ["output", *(["present_key", "present_value"] if self.presents else [])]
        node = helper.make_node(self.operator, self.inputs, outputs, domain=self.domain, **dict(self.attributes))
        told = [helper.make_tensor_value_info(name, kinds.get(name, kind), None) for name in self.inputs if name]
        made = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
        opsets = [helper.make_opsetid("", self.opset)]
        if self.domain:
            opsets.append(helper.make_opsetid(self.domain, 1))
        return helper.make_model(
            helper.make_graph([node], "attention", told, made), opset_imports=opsets, ir_version=11
        )


@cache
def _session(node: Node) -> Any:
    """A session of ONNX Runtime with one node."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(node.model().SerializeToString(), options, providers=["CPUExecutionProvider"])


def _fed(arrays: dict[str, Any]) -> dict[str, Any]:
    """Feeds by name, without what is None, in order."""
    return {name: np.ascontiguousarray(x) for name, x in arrays.items() if x is not None}


def _run(node: Node, feeds: dict[str, Any]) -> Any:
    """The first output of ONNX Runtime."""
    return _session(node).run(None, feeds)[0]


def _onnx_attention(run: Callable[..., Any], opset: int, dtype: str, *, past: bool) -> Callable[..., Any]:
    """The operator Attention: of the keys those before the queries come as the past, or none."""

    def kernel(
        query: Any, key: Any, value: Any, is_causal: bool, mask: Any, bias: Any, scale: float, softcap: Any
    ) -> Any:
        before = key.shape[2] - query.shape[2] if past else 0
        feeds = _fed({"query": query, "key": key[:, :, before:], "value": value[:, :, before:]})
        added = _fed({"mask": mask} if bias is None else {"bias": bias})
        names = ["query", "key", "value", next(iter(added), "")]
        if past:
            feeds |= _fed({"past_key": key[:, :, :before], "past_value": value[:, :, :before]})
            names += ["past_key", "past_value"]
        attributes = {"scale": scale, "is_causal": int(is_causal), "softcap": softcap or 0.0}
        node = Node("Attention", opset, dtype, tuple(names), tuple(attributes.items()), presents=past)
        return run(node, feeds | added)

    return kernel


def _onnx_entries(software: str, package: str, run: Callable[..., Any], kinds: Iterable[tuple[int, str, bool]]) -> Any:
    """Attention without a cache, and with one."""
    for opset, dtype, past in kinds:
        yield entry(
            software, package, f"Attention-{opset}{', past_key' if past else ''}", dtype, eager(dtype),
            _onnx_attention(run, opset, dtype, past=past),
            lengths=CACHED if past else LENGTHS,
            accepts=("is_causal", "mask", "bias", "scale", "softcap"), expected_failures=SPREADING,
        )  # fmt: skip


def onnx_reference() -> Iterator[Entry]:
    """The operator Attention in onnx's own reference, in NumPy."""
    from onnx.reference import ReferenceEvaluator

    def run(node: Node, feeds: dict[str, Any]) -> Any:
        return ReferenceEvaluator(node.model()).run(None, feeds)[0]

    kinds = [(24, "float32", False), (24, "float16", False), (24, "float32", True)]
    yield from _onnx_entries("onnx ReferenceEvaluator", "onnx", run, kinds)


def onnxruntime() -> Iterator[Entry]:
    """The operators of ONNX Runtime on the CPU."""
    import onnx  # noqa: F401  (it makes the models)
    import onnxruntime  # noqa: F401

    kinds = [(23, "float32", False), (24, "float32", False), (24, "float16", False), (24, "float32", True)]
    yield from _onnx_entries("ONNX Runtime", "onnxruntime", _run, kinds)
    for dtype in ("float32", "float16"):
        yield _group_query(dtype)
    yield _group_query("float32", window=20)
    yield _group_query("float32", presents=False)
    yield entry(
        "ONNX Runtime", "onnxruntime", "MultiHeadAttention", "float32", eager("float32"), _multi_head,
        heads=(4, 4), dims=(64, (64, 80)), layout="blhd", accepts=("is_causal", "bias", "scale"),
        expected_failures=SPREADING,
    )  # fmt: skip


def _flat(x: Any) -> Any:
    """(B, L, H, E) as (B, L, H*E)."""
    return x.reshape(*x.shape[:2], -1)


def _group_query(dtype: str, *, window: int = -1, presents: bool = True) -> Entry:
    """com.microsoft.GroupQueryAttention, with a past of what lies before the queries."""

    def kernel(query: Any, key: Any, value: Any, bias: Any, scale: float, softcap: Any, sinks: Any) -> Any:
        (B, L, H, _), (S, Hk) = query.shape, key.shape[1:3]
        past = [np.swapaxes(x[:, : S - L], 1, 2) if S > L else None for x in (key, value)]
        feeds = _fed({
            "query": _flat(query), "key": _flat(key[:, S - L :]), "value": _flat(value[:, S - L :]),
            "past_key": past[0], "past_value": past[1], "SEQLENS": np.full(B, S - 1, np.int32),
            "TOTAL": np.array([S], np.int32), "bias": bias, "sinks": sinks,
        })  # fmt: skip
        order = ("query", "key", "value", "past_key", "past_value", "SEQLENS", "TOTAL", "", "", "", "bias", "sinks")
        attributes = {
            "num_heads": H, "kv_num_heads": Hk, "scale": scale, "softcap": softcap or 0.0, "local_window_size": window,
        }  # fmt: skip
        names = tuple(name if name in feeds else "" for name in order)
        node = Node(
            "GroupQueryAttention", 23, dtype, names, tuple(attributes.items()), "com.microsoft", presents=presents
        )
        return _run(node, feeds).reshape(query.shape)

    words = f"{f', window {window}' if window > 0 else ''}{'' if presents else ', present outputs left out'}"
    mask = masks.window(window - 1 if window > 0 else None, 0, anchor="lower_right")
    return entry(
        "ONNX Runtime", "onnxruntime", f"GroupQueryAttention{words}", dtype, eager(dtype), kernel, ONE_SEQUENCE,
        layout="blhd", batch=(1,), lengths=CACHED, computes={"mask": mask},
        accepts=("bias", "scale", "softcap", "sinks"), expected_failures=SPREADING,
    )  # fmt: skip


def _multi_head(query: Any, key: Any, value: Any, is_causal: bool, bias: Any, scale: float) -> Any:
    """com.microsoft.MultiHeadAttention."""
    feeds = _fed({"query": _flat(query), "key": _flat(key), "value": _flat(value), "bias": bias})
    names = ("query", "key", "value", *(("", "", "bias") if bias is not None else ()))
    attributes = {"num_heads": query.shape[2], "scale": scale, "unidirectional": int(is_causal)}
    node = Node("MultiHeadAttention", 23, "float32", names, tuple(attributes.items()), "com.microsoft")
    return _run(node, feeds).reshape(*query.shape[:3], value.shape[3])
