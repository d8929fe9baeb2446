"""What a run is: settings, presets, overrides and budget. Free of torch."""
