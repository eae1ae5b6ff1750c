"""Rows in and out: merged stores, and files and databases of other programs."""
