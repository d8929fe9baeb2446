"""Loading a trained model and sampling images from it."""
