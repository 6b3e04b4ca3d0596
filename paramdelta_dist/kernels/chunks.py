"""Chunks: runs of a tensor counted from its start, the same however it is cut. Sums and counts are kept for whole ones."""

CHUNK = 1 << 12
"""Elements of a chunk. Who takes sums or counts ties over pieces of a tensor begins each piece at a multiple of it."""
