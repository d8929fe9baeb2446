"""`python -m ecdit_cli` runs the command line; launchers use it as their entry point."""

import sys
from pathlib import Path


def leave_working_folder() -> None:
    """Removes the working folder from the module path, unless this package is in it.

    `python -m` puts it first, where a user may have another package called `experiments`.
    """
    if not sys.flags.safe_path and Path(sys.path[0]).resolve() != Path(__file__).resolve().parents[1]:
        del sys.path[0]


if __name__ == "__main__":
    leave_working_folder()
    from ecdit_cli.app import main

    main()
