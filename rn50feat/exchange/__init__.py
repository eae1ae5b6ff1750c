"""Exchange rows with other programs and stores: import, export and merge.

Takes rows from a store to a file or database, or from files and other stores
into a store, through the same write session as an extraction. Order: `npy`,
`parquet`, `export`, then `qdrant`; `merge` and `importing`. Never computes
features.
"""
