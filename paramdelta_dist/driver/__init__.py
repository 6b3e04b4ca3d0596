"""What the driving process does: opens what a recipe names, sizes the workers, has made what is missing, publishes. Prints nothing."""
