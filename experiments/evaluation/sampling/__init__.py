"""Loads a trained model and samples images from it."""
