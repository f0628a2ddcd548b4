"""Problems that show a fault: shrunk, saved as two files, and replayed."""
