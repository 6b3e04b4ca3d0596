"""`python -m paramdelta_dist`: the command line, where no console script is on the path."""

from paramdelta_dist.cli import main

main()
