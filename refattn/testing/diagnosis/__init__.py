"""What is wrong with a kernel: known bugs fitted to its numbers, and the words of all instruments in one order."""
