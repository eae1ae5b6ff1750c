"""Keep features in one HDF5 file that is never half-written.

In: arrays, references and a provenance record. Out: one HDF5 file, read as
arrays and frozen records. Order: `damage`, `rows`, `layout`, `checksums`,
`storable`, `guards`, `opening`, `summary`, `paths`, `reader`, `marks`, `snapshot`,
`renaming`, `writer`, `compact`, `shrinking`, `schedule`, `session`. Rows are written through
a `session`. Never imports `model`: a store works without torch.
"""
