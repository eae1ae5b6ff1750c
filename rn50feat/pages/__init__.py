"""Show results to people, as HTML pages in one file.

In: hits, groups, or the structure of the network. Out: one file that needs no
network and no script. Order: `page`, then `figures` and `thumbnails`, then
`diagram` and `gallery`. Never searches or computes features.
"""
