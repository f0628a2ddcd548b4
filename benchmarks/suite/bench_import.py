"""What `import refattn` costs beyond NumPy."""

from __future__ import annotations


def timeraw_import() -> tuple[str, str]:
    """Statement to be timed in a fresh process, and the set-up that is not."""
    return "import refattn", "import numpy"
