"""From a folder of annotated images to an experiment file: splitting, choosing, writing."""
