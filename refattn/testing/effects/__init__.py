"""Mistakes below the bound of any one number, measured over all numbers together."""
