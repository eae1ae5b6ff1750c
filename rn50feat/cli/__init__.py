"""The command line: parse options, make one library call, print the result.

One module per command. Results go to stdout, everything else to stderr.
Heavy libraries are imported by the command that needs them, when it runs.
"""
