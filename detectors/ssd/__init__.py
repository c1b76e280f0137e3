"""SSD: Single Shot MultiBox Detector."""
