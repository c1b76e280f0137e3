"""Augmentations: pure functions of an image, its boxes and a key that addresses the draws."""
