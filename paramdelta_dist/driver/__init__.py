"""The driving process of a run: opens the inputs, sizes the workers, has missing shards made, publishes. Prints nothing."""
