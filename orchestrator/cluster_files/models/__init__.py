"""Strict models of the files that describe clusters: every key that may stand in one is named."""
