"""Show results to people, as self-contained HTML pages.

Takes hits, groups, the points of a map, or the structure of the network, and
writes one file that needs no network. Order: `page`, then `figures` and
`thumbnails`, `cards`, then `diagram`, `gallery`, `comparison` and `map_page`,
the only one with a script. Never searches or computes features.
"""
