"""Forward passes of published models in plain NumPy, with attention passed in as a function."""
