"""`python -m ecdit_cli`: what launchers run."""

from ecdit_cli.app import main

if __name__ == "__main__":
    main()
