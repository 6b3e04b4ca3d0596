"""The life of an output folder: claimed, filled, committed, replaced, removed. Knows nothing of tiles, kernels or Ray."""
