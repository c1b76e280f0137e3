"""The only room that knows Ray Train: placement, workers, signs of life, submission."""
