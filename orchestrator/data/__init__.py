"""From annotation files to fixed-shape batches: readers, schedule, augmentation, streams."""
