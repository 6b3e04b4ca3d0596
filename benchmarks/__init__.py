"""What is measured, against what, with the command that made each result."""
