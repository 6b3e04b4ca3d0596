"""The command line: parse, call the function of the same name in `api`, render. Knows no merge: it decides nothing."""
