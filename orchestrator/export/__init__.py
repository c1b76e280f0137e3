"""Detectors as files that need nothing of this program, behind a parity gate."""
