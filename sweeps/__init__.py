"""Sweeps: turning a sweep file into a plan of runs, pricing the plan, and working it off here or on a Slurm cluster."""
