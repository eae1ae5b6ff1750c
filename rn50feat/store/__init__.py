"""Keep features in one HDF5 file that is never half-written.

In: arrays, references and a provenance record. Out: one HDF5 file, read as
arrays and frozen records. Order: `damage`, `rows`, `layout`, `checksums`,
`guards`, `opening`, `positions`, `summary`, `paths`, `reader`, `storable`,
`damage_notes`, `snapshot`, `array`, `renaming`, `repair`, `writer`, `salvage`,
`compact`, `shrinking`, `schedule`, `session`, through which all rows are
written. Never imports `model`: a store works without torch.
"""
