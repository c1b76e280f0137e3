"""The beginning of the experiment that tests start as a user does."""

from __future__ import annotations


def experiment(rest: str, *, name: str = "tiny", root: str = "digits") -> str:
    """A small detector on digits; ``rest`` is the text of the other sections."""
    return f"""
name: {name}
detector: {{name: ssd, variant: ssd300_mobilenet_v2, width: 0.1, bn_momentum: 0.1}}
data:
  root: {root}
  train: {{images: images, annotations: annotations/instances_train.json}}
  val: {{images: images, annotations: annotations/instances_val.json}}
{rest}"""
