"""Stands for Ascend's ``acl``, which Ray asks how many NPUs a node has."""


class rt:  # noqa: N801
    """Its runtime."""

    @staticmethod
    def get_device_count() -> tuple[int, int]:
        """Number of devices, and the status of success."""
        return 8, 0


def get_soc_name() -> str:
    """Model of the devices."""
    return "Ascend910B2"
