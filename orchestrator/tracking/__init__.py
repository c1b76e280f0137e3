"""The event log of a run, what ships it to MLflow, and the run card."""
