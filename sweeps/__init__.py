"""Turns a sweep file into a plan of runs, prices the plan, and executes it here or on a Slurm cluster."""
