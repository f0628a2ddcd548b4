"""Random-feature attention, Performer: softmax's kernel as an expectation of products of features."""
