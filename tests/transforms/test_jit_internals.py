"""Internals: what `elegy.jit` keeps, and when it looks at its modules again."""

import jax.numpy as jnp
import pytest

import elegy
from elegy.nn import Linear

X = jnp.ones((2, 3))


class Net(elegy.Module):
    def __init__(self):
        self.layers = [Linear(4), Linear(2)]

    def call(self, x):
        for layer in self.layers:
            x = layer(x)
        count = self.add_parameter("count", [], jnp.int32, trainable=False)
        if elegy.training():
            self.update_parameter("count", count + 1)
        return Linear(1)(x)


# ---------------------------------------------------------------------------------------------------------------------
# What is kept
# ---------------------------------------------------------------------------------------------------------------------


def test_the_programs_of_one_structure_are_one():
    """The number of compiled programs is that of the traces: nothing is compiled for nothing."""
    net = Net().init(X)
    compiled = elegy.jit(lambda x: net(x), modules=net)
    for mode in (True, False, True, False):
        with elegy.training_context(mode):
            compiled(X)
    assert compiled._jitted._cache_size() == 2


def test_a_compiled_function_of_a_module_does_not_keep_dead_structures_alive():
    """Freezing to and fro must not grow anything."""
    net = Net().init(X)
    compiled = elegy.jit(lambda x: net(x), modules=net)
    for _ in range(20):
        net.trainable = False
        compiled(X)
        net.trainable = True
        compiled(X)
    assert compiled.traces == 2
    assert len(compiled._configs) == 2


# ---------------------------------------------------------------------------------------------------------------------
# When modules are looked at again
# ---------------------------------------------------------------------------------------------------------------------


class Constructs(elegy.Module):
    """A parameter of its own, and one below, both made by constructors."""

    def __init__(self, deep=True):
        self.w = self.add_parameter("w", [3])
        self.below = Constructs(deep=False) if deep else None

    def call(self, x):
        return x


@pytest.mark.parametrize("change", [lambda: Constructs(), lambda: [Constructs(), Linear(3), Net()]])
def test_a_module_at_which_nobody_looked_is_no_reason_to_look_again(change):
    net = Net().init(X)
    compiled = elegy.jit(net)
    compiled(X)
    before = compiled._threaded.latest
    kept = change()
    compiled(X)
    assert compiled._threaded.latest is before
    # A change of its own is one.
    net.layers[0].trainable = False
    compiled(X)
    assert compiled._threaded.latest is not before
    del kept


def test_modules_constructed_at_each_step_do_not_make_it_look_again():
    net = Net().init(X)
    views = []

    def step():
        fresh = Constructs()
        return net(X) + fresh.w.sum()

    compiled = elegy.jit(step, modules=net)
    for _ in range(3):
        Constructs()
        compiled()
        views.append(compiled._threaded.latest)
    assert views[0] is views[1] is views[2]
