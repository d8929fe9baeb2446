"""`python -m ecdit_cli`: what launchers run."""

import sys
from pathlib import Path


def leave_working_folder() -> None:
    """Look for modules where this package is: `-m` looks in the working folder first, where a user may have an
    `experiments` of his own.
    """
    if not sys.flags.safe_path and Path(sys.path[0]).resolve() != Path(__file__).resolve().parents[1]:
        del sys.path[0]


if __name__ == "__main__":
    leave_working_folder()
    from ecdit_cli.app import main

    main()
