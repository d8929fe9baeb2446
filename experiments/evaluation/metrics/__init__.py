"""The metrics of sampled images, each with the network or judge that it needs."""
