"""Exchange rows with other programs: import, export and merge.

In: stores, files and databases of others. Out: the same rows there, or here.
What is taken in goes through the store's write session, as in an extraction.
An order within: `npy`, `parquet`, `export`, then `qdrant`; `merge` and
`importing`. Never computes features.
"""
