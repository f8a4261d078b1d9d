"""Internals: the tables of the package by identity, which keep nothing of what is gone."""

import gc

import jax
import jax.numpy as jnp

import elegy
from elegy.captures import captures, constants
from elegy.drawn import _recipes

X = jnp.ones(3)


class Three(elegy.Module):
    """Draws three parameters in the constructor."""

    def __init__(self):
        for name in "abc":
            setattr(self, name, self.add_parameter(name, [3, 2], initializer=jax.nn.initializers.normal()))


def test_nothing_is_kept_of_dead_modules_and_functions():
    gc.collect()
    before = len(captures), len(constants)
    net = elegy.nn.Linear(3).init(X)
    step = jax.jit(lambda x: net(x))
    with elegy.debug():
        step(X)
    assert (len(captures), len(constants)) == (before[0] + 1, before[1] + 1)
    del net, step
    jax.clear_caches()
    gc.collect()
    assert (len(captures), len(constants)) == before


def test_no_recipe_is_kept_of_arrays_that_are_gone():
    before = len(_recipes)
    module = Three()
    assert len(_recipes) == before + 3
    del module
    assert len(_recipes) == before
