"""The gated and delta recurrences: a state of fixed size in the place of the softmax over all keys."""
