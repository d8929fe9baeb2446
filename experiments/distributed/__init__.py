"""What processes of one run share: DeepSpeed's groups, launchers, rendezvous, common decisions and the watchdog."""
