"""A busy neighbour: a process that wants a core while something is measured.

A laptop with a browser open is such a machine. With as many threads as cores one thread then often waits for another
that is not scheduled, so that speeds measured alone do not tell what a user gets.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def busy_neighbour(is_wanted: bool = True) -> Iterator[None]:
    """Keeps a process busy on one core meanwhile, as a browser would; it ends with this process, however that ends."""
    if not is_wanted:
        yield
        return
    program = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(100_000))"
    neighbour = subprocess.Popen([sys.executable, "-c", program])
    try:
        yield
    finally:
        neighbour.kill()
        neighbour.wait()
