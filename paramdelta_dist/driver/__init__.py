"""The driving process of a run: opens inputs, sizes workers, has missing shards made, publishes. Knows no terminal."""
