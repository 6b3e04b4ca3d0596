"""Measures deltas: statistics in one pass over the inputs, tables of them, and a page. Knows nothing of the driver."""
