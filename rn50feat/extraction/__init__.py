"""Bring a store up to date with its sources.

In: sources and the path of a store. Out: the store, and a summary of the run.
Order: `catalogue` (what the store knows), `plan` (what to do with each file),
`attempts` and `prune` (what to try again, what to remove), `run`, `extract`;
`preview`, `verify` and `bench` report on the same without writing. Never
decodes an image or runs the network: engines do.
"""
