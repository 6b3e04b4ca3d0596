"""What is measured, against what, with the command that made each result. `python -m benchmarks` runs all, a name runs one."""
