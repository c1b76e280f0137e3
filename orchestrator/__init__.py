"""Training object detectors at scale: one experiment file in, a tracked detector out."""
