"""Exact attention with a proven error radius for every number, down to correctly rounded results."""
