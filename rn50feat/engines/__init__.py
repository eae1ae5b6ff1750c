"""Where computation runs: this machine, its GPUs, or a Ray cluster.

In: references to images. Out: batches of rows and failures, every reference
exactly once. Order: `contract`; `allowance`, `worker`, `pool`, `local`, `calibration`; then
`cluster`, `portion`, `node`, `actor`, `ray`. Never opens a store, never
writes, and never triggers a write: the caller pulls batches and writes them.
"""
