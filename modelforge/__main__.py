"""`python -m modelforge` is the command line."""

from modelforge.cli import main

main()
