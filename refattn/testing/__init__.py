"""What a kernel author imports: the verdict on arrays, and on a kernel that is run on drawn and real inputs."""

from refattn.testing.criterion import Power, power
from refattn.testing.explanation import Explanation
from refattn.testing.inputs.cases import Case, captured
from refattn.testing.kernel import check_kernel
from refattn.testing.probes import Readings, probe
from refattn.testing.report import CheckResult, Finding, Report
from refattn.testing.repro.saved import Replayed, load_inputs, replay, save_repro
from refattn.testing.repro.shrinking import shrink
from refattn.testing.spec import KernelSpec
from refattn.testing.suite import LawResult, conformance, parametrize_with_checks, run_checks
from refattn.testing.verdict.checking import assert_attention, check
from refattn.testing.verdict.record import Element, Verdict

__all__ = (
    "Case",
    "CheckResult",
    "Element",
    "Explanation",
    "Finding",
    "KernelSpec",
    "LawResult",
    "Power",
    "Readings",
    "Replayed",
    "Report",
    "Verdict",
    "assert_attention",
    "captured",
    "check",
    "check_kernel",
    "conformance",
    "load_inputs",
    "parametrize_with_checks",
    "power",
    "probe",
    "replay",
    "run_checks",
    "save_repro",
    "shrink",
)
