"""Transforms of functions of modules."""

from elegy.transforms.grad import grad as grad, value_and_grad as value_and_grad
from elegy.transforms.jit import jit as jit

__all__ = ["grad", "jit", "value_and_grad"]
