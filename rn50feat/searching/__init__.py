"""Find images by similarity: queries, duplicates, the FAISS index, and layouts of maps.

In: queries and a store. Out: hits, or groups of images. Order: `products`,
`scores`, `best`; `rounded`, `blocks` and `many_queries` for many queries at once;
`exact`, `neighbours`, `inverted_lists`, `faiss_index`, `index_plan`,
`index_file`, `index_parts`, `index_summary`, `path_file`, `nearest`, `recall`,
`index`; `queries` and `embed` turn query images into features; `search` uses
all of these, and so do `distinct`, `near_pairs`, `groups`, `guesses`,
`alignment`, `relations`, `regrouping`, `duplicates` and `comparison`; and
`projection`, `map_layout` and `map_points` for maps. Never changes a store;
writes indexes, layouts and relations next to it.
"""
