"""The command line: parse options, make one library call, print the result.

One module per command; `main` puts them together. They share `streams`,
`terminal`, `ending` (exit code and JSON), `options`, `network_options`,
`stores`, `report` and `groups`, `matches` (results as text), `description` (what ``info``
shows) and `outcome` (what a run did). Results go to stdout, everything else to stderr. Heavy
libraries are imported by the command that needs them, when it runs.
"""
