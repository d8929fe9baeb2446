"""Images with captions by data set, and the batches made of them."""
