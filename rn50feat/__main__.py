"""Run the command line: ``python -m rn50feat``."""

from rn50feat.cli import main

main()
