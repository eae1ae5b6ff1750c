"""Show results to people, as self-contained HTML pages.

Takes hits, groups, or the structure of the network, and writes one file that
needs no network and no script. Order: `page`, then `figures` and `thumbnails`,
`cards`, then `diagram` and `gallery`. Never searches or computes features.
"""
