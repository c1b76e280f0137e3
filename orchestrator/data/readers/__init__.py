"""Annotation files of every format, as one kind of data set."""
