"""Recognise images, and turn them into the network's input.

In: the bytes of a file. Out: a crop, or the reason why there is none. Order:
`provenance` (the record that crops and rows are made by; `store` and `model`,
which never import each other, share it), `resampling`, the formats (`kinds`,
`jpeg`, `png`, `tiff`), the samples (`numbers`, `colors`, `wide`, `samples`),
then `decoding`. Never opens a file.
"""
