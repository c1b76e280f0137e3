"""Exact training: the step loop, its commits, and how Ray Train runs it."""
