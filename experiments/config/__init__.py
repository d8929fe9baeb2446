"""Defines what a run is: settings, presets, overrides and budget. This package does not import torch."""
