"""Bring a store up to date with its sources.

In: sources and the path of a store. Out: the store, and a summary of the run.
Order: `catalogue` (what the store knows), `attempts` (what to try again),
`moves` (which images only moved), `plan` (what to do with each file), `todo`
(images for the engine, changes for the rest), `changes` (the one place that
writes), `healing` (damaged rows), `prune`, `relocate` (new paths for images
that are elsewhere), `advice`, `quantizing`, `extract`; `preview`, `verify`, `cost`
and `bench` report on the same without writing. Never decodes an image or runs the network: engines do.
"""
