"""Weights made elsewhere: reading them safely, renaming them, and saying what became of each."""
