"""Object detectors in plain torch: networks, targets, losses, decoding and suppression."""
