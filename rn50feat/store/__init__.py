"""The HDF5 file: rows in, a file that is never torn out.

In: arrays, references and a provenance record. Out: one HDF5 file, read as
arrays and frozen records. Order: `damage`, `rows`, `layout`, `storable`,
`opening`, `reader`, `marks`, `snapshot`, `writer`, `compact`. Never imports
`model`: a store works without torch.
"""
