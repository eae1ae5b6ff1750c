"""The command line: options in, one call of the library, its result out.

One module for each command. Results go to stdout, everything else to stderr.
What is heavy is imported by the command that needs it, when it runs.
"""
