"""Chunks: runs of a tensor counted from its start, the same however it is cut. Within one, the order of adding is fixed."""

SUM_CHUNK = 1 << 12
"""Elements of a chunk. Who takes sums over pieces of a tensor begins each piece at a multiple of it."""
