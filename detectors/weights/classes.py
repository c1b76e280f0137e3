"""Class names behind published weights that say nothing but their number of channels.

Sources: the COCO 2017 instance annotations (80 categories, ids 1 to 90 with gaps) and the Pascal
VOC development kit (20 classes, alphabetical).
"""

from __future__ import annotations

#: COCO names in the order of their ids.
COCO_NAMES = tuple(
    """person|bicycle|car|motorcycle|airplane|bus|train|truck|boat|traffic light|fire hydrant
    |stop sign|parking meter|bench|bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe
    |backpack|umbrella|handbag|tie|suitcase|frisbee|skis|snowboard|sports ball|kite|baseball bat
    |baseball glove|skateboard|surfboard|tennis racket|bottle|wine glass|cup|fork|knife|spoon|bowl
    |banana|apple|sandwich|orange|broccoli|carrot|hot dog|pizza|donut|cake|chair|couch|potted plant
    |bed|dining table|toilet|tv|laptop|mouse|remote|keyboard|cell phone|microwave|oven|toaster|sink
    |refrigerator|book|clock|vase|scissors|teddy bear|hair drier|toothbrush""".replace(
        "\n    ", ""
    ).split("|")
)

#: Ids 1 to 90 that COCO does not use.
_COCO_GAPS = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83})

#: COCO's id of each of :data:`COCO_NAMES`.
COCO_IDS = tuple(number for number in range(1, 91) if number not in _COCO_GAPS)

#: One name for each id 1 to 90, as heads that are laid out by COCO id have a channel for each.
COCO_NAMES_BY_ID = tuple(
    f"unused {number}" if number in _COCO_GAPS else COCO_NAMES[COCO_IDS.index(number)]
    for number in range(1, 91)
)

#: Pascal VOC names.
VOC_NAMES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

#: Names by number of foreground classes, for published layouts that count them without gaps.
_BY_COUNT = {80: COCO_NAMES, 90: COCO_NAMES_BY_ID, 20: VOC_NAMES}


def published_names(count: int) -> tuple[str, ...] | None:
    """Names of the classes of published weights with ``count`` foreground classes, if known."""
    return _BY_COUNT.get(count)
