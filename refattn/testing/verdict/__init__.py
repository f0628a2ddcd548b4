"""What a result is worth: error against bound, element by element, and the words for it."""
