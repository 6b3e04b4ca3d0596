"""What deltas are: statistics in one pass over the inputs, tables of them, and a page that shows them."""
