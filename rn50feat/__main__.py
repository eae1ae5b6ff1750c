"""Run the command line: ``python -m rn50feat``."""

from rn50feat.cli.main import main

main()
