"""Modules in checkpoints of Orbax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy
from tests.helpers import Affine, assert_same

ocp = pytest.importorskip("orbax.checkpoint")

X = jnp.ones((2, 3))
# Orbax warns that shardings are read from the file where it is not told any.
pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning", "ignore::DeprecationWarning")


class Mix(elegy.Module):
    def __init__(self):
        self.layers = [jax.nn.relu, Affine(2), "text", {"a": Affine(3), "b": 1, "c": [jnp.ones(2), 2.0]}]
        self.table = {"scale": jnp.full(2, 0.5), "name": "mix"}

    def call(self, x):
        y = self.layers[1](self.layers[3]["a"](self.layers[0](x)))
        return y * jnp.broadcast_to(self.table["scale"], y.shape)


MODULES = {
    "Sequential": lambda: elegy.nn.Sequential(
        lambda: [elegy.nn.Linear(4), elegy.nn.BatchNormalization(), jax.nn.relu, elegy.nn.Dropout(0.5)]
    ),
    "mixed containers": Mix,
    "Linear": lambda: elegy.nn.Linear(2),
}


@pytest.mark.parametrize("checkpointer", ["PyTreeCheckpointer", "StandardCheckpointer"])
@pytest.mark.parametrize("name", MODULES)
def test_what_orbax_saves_it_restores(name, checkpointer, tmp_path):
    module, other = MODULES[name]().init(X, rng=0), MODULES[name]().init(X, rng=1)
    with getattr(ocp, checkpointer)() as saver:
        saver.save(tmp_path / "module", module)
        if checkpointer == "StandardCheckpointer":
            saver.wait_until_finished()
            restored = saver.restore(tmp_path / "module", other)
        else:
            restored = saver.restore(tmp_path / "module", item=other)
    restored = jax.tree.map(jnp.asarray, restored)
    assert_same(restored, module)
    with elegy.training_context(False):
        np.testing.assert_array_equal(restored(X), module(X))
