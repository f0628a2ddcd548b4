"""What asv runs. The parameters come from the capabilities of the public functions."""
