"""Holds what the processes of a run share: DeepSpeed's groups, launchers, rendezvous, agreement and the watchdog."""
