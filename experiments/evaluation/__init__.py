"""What trained models make, and what that costs: samples, previews, inference time."""
