"""From a step number to its batch: order, assembly, and the streams that carry batches."""
