"""Commits of a run: whole or not there, verified when read; and weights from elsewhere."""
