"""Routers behind one contract: a router decides, one stacked expert computation serves them all."""
