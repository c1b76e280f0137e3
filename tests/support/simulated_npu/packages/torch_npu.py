"""Stands for torch_npu in every process that has this folder on its Python path."""

from tests.support.simulated_npu import install

install()
