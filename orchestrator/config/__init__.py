"""Experiment files: YAML to a frozen, fully resolved, typed configuration."""
