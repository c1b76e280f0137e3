"""M2Det: Multi-Level Multi-Scale Detector."""
