"""Where files are: folders, lists, archives, and remote storage.

In: places. Out: references to files, and their bytes. Order: `zip_names`,
`folders`, `remote`, `lists`, `zips`, `archives`, `exclusion`, `sources`,
`presence`, `selection`. Never knows what an image is.
"""
