"""Runs `ecdit` and `python -m ecdit_cli`: it makes sure that our packages are ours, and runs a command.

`experiments`, `sweeps` and `analysis` are ordinary names. Nothing is imported here before the check but what Python has
loaded already.
"""

import os
import sys
from importlib.util import find_spec

PACKAGES = ("experiments", "sweeps", "analysis")
ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))


def leave_working_folder() -> None:
    """Removes the working folder, which `python -m` puts first on the module path, unless this package is in it."""
    if not sys.flags.safe_path and os.path.realpath(sys.path[0]) != ROOT:
        del sys.path[0]


def refuse_other_packages() -> None:
    """Exits with one line where a folder on `PYTHONPATH`, or another distribution, hides one of our packages."""
    for name in PACKAGES:
        spec = find_spec(name)
        places = [] if spec is None else [*(spec.submodule_search_locations or ()), spec.origin or ""]
        if os.path.join(ROOT, name) not in map(os.path.realpath, places):
            found = places[0] if places else "nowhere"
            print(
                f"error: Python finds the package {name!r} in {found!r}, and that of ecdit is in {ROOT!r}. "
                f"Take the folder of the other {name!r} off PYTHONPATH, or rename it.",
                file=sys.stderr,
            )
            sys.exit(2)


def main() -> None:
    """Entry point of the console script."""
    refuse_other_packages()
    from ecdit_cli.app import main as run_command

    run_command()


if __name__ == "__main__":
    leave_working_folder()
    main()
