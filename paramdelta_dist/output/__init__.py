"""The life of an output folder: claimed, filled, committed, replaced, removed. Knows plans and stores; nothing of tiles, kernels or Ray."""
