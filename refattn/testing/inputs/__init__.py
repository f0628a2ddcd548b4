"""Problems that kernels are run on: drawn, captured, batched, and cut into parts."""
