"""What every room shares; it knows no attention method."""
