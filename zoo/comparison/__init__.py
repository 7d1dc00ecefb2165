"""Recipes side by side: the same data, several seeds each, every run in a process of its own, one table."""
