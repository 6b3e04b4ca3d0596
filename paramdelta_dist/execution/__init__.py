"""Doing what was planned: one function over shards, here or on Ray, and the order in which an output becomes a model."""
