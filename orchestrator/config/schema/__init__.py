"""The experiment file as types: strict, frozen, unknown keys refused.

The docstring of each class describes its fields; the published JSON Schema is made from it.
"""

from orchestrator.config.augmentations import (
    Augmentation,
    M2DetAugmentation,
    NoAugmentation,
    ResizePadAugmentation,
    ScaleJitterAugmentation,
    SSDAugmentation,
)
from orchestrator.config.schema.data import (
    DataConfig,
    MixConfig,
    SourceConfig,
    SplitConfig,
    TilesConfig,
)
from orchestrator.config.schema.experiment import ClusterConfig, Experiment, TrackingConfig
from orchestrator.config.schema.sweep import (
    PARAMETERS,
    AshaConfig,
    Domain,
    Objective,
    PbtConfig,
    SweepConfig,
)
from orchestrator.config.schema.train import (
    AdamWOptimizer,
    CheckpointConfig,
    ConstantSchedule,
    CosineSchedule,
    EarlyStoppingConfig,
    EmaConfig,
    FreezeConfig,
    MultistepSchedule,
    Optimizer,
    ParameterGroup,
    Schedule,
    SGDOptimizer,
    TrainConfig,
)

__all__ = [
    "PARAMETERS",
    "AdamWOptimizer",
    "AshaConfig",
    "Augmentation",
    "CheckpointConfig",
    "ClusterConfig",
    "ConstantSchedule",
    "CosineSchedule",
    "DataConfig",
    "Domain",
    "EarlyStoppingConfig",
    "EmaConfig",
    "Experiment",
    "FreezeConfig",
    "M2DetAugmentation",
    "MixConfig",
    "MultistepSchedule",
    "NoAugmentation",
    "Objective",
    "Optimizer",
    "ParameterGroup",
    "PbtConfig",
    "ResizePadAugmentation",
    "SGDOptimizer",
    "SSDAugmentation",
    "ScaleJitterAugmentation",
    "Schedule",
    "SourceConfig",
    "SplitConfig",
    "SweepConfig",
    "TilesConfig",
    "TrackingConfig",
    "TrainConfig",
]
