"""`python -m brickyard`: the command line."""

from brickyard.cli import main

main()
