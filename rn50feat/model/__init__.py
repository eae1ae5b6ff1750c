"""Choose the network: weights files, variants, and compatibility with a store.

In: a name or a file. Out: tensors, and a record of what they are. Order:
`variants`, `weight_files` (the formats of other programs), `download`;
`pickles`, `strangers`, `layouts` and `records` for what others have published;
`tensors`, `weights`, `compatibility`, `network`, then `structure` and
`convert`. Never imports `store`: the network works without h5py.
"""
