"""RetinaNet: dense detection with focal loss."""
