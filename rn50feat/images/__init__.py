"""Recognise images and turn them into the network's input.

In: the bytes of a file. Out: a crop, or the reason why there is none. Order:
`quantization`, `provenance` (what crops and rows depend on; `store` and
`model`, which never import each other, share it), `settings` (how it is
typed), `resampling`, `sample_format`, the formats (`kinds`, `jpeg`, `png`,
`tiff`), the samples (`colors`, `wide`, `samples`), `views`, then `decoding`,
`dimensions` and `least_work`; `in_memory` encodes. Never opens a file.
"""
