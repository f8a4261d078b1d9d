"""Transforms of functions of modules."""

from elegy.transforms.cond import cond as cond, switch as switch
from elegy.transforms.grad import grad as grad, value_and_grad as value_and_grad
from elegy.transforms.jit import jit as jit
from elegy.transforms.loops import fori_loop as fori_loop, while_loop as while_loop
from elegy.transforms.remat import remat as remat
from elegy.transforms.scan import scan as scan
from elegy.transforms.vmap import vmap as vmap

__all__ = ["cond", "fori_loop", "grad", "jit", "remat", "scan", "switch", "value_and_grad", "vmap", "while_loop"]
