"""Defines routers behind one contract: a router decides which token gets which slot, and with which weight."""
