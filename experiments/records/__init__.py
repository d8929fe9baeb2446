"""What a run writes, and the only place that names its files. Free of torch."""
