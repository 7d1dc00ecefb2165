"""Samples to tensors, one file per kind of model input."""
