"""Defines the objectives of training and the samplers, independently of the network."""
