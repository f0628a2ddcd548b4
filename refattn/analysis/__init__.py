"""What attention does inside models: the models themselves, with attention passed in."""
