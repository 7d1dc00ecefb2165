"""Readers: where samples and evaluation tasks come from."""
