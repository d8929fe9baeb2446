"""Routers behind one contract: a router only decides which token goes to which slot of which expert, and its weight."""
