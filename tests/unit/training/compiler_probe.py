"""A forked training that says whether it has imported torch's compiler. Not a test: see `test_without_compiler.py`."""

from __future__ import annotations

import sys

from ecdit_cli.app import run


def main() -> None:
    """Trains as `ecdit` with the words of the command line does, and ends with a reason if the compiler is there."""
    code = run(sys.argv[1:])
    sys.exit(code or ("torch._dynamo" in sys.modules and "it was imported") or 0)
