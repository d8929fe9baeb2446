"""Reads run records, fits scaling laws, compares runs with intervals, and writes tables, figures and reports."""
