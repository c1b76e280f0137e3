"""COCO evaluation: from the detections of all ranks to the numbers and the results file."""
