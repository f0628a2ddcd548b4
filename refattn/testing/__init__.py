"""What a kernel author imports: the verdict on arrays, and on a kernel that is run on drawn and real inputs."""

from refattn.testing.checking import assert_attention, check
from refattn.testing.kernel import check_kernel
from refattn.testing.report import CheckResult, Finding, Report
from refattn.testing.spec import KernelSpec
from refattn.testing.verdict import Element, Verdict

__all__ = (
    "CheckResult",
    "Element",
    "Finding",
    "KernelSpec",
    "Report",
    "Verdict",
    "assert_attention",
    "check",
    "check_kernel",
)
