"""Pictures that notebooks show."""

import pickle
import struct

import numpy as np

from elegy.callbacks import History
from elegy.metrics import ConfusionMatrix
from elegy.model import LearningRates


def size_of(png):
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", png[16:24])


def test_notebooks_show_what_is_drawn():
    """IPython asks for `_repr_png_`, unless pyplot was imported, and it knows all figures."""
    history = History()
    history.on_epoch_end(0, {"loss": 1.0, "accuracy": 0.5})
    rates = np.array([0.1, 1.0])
    for figure, size in [
        (history.plot(), (1000, 400)),
        (ConfusionMatrix(4).plot(), (400, 400)),
        (LearningRates(rates, rates, None, "too few").plot(), (640, 480)),
    ]:
        assert size_of(figure._repr_png_()) == size
        assert size_of(pickle.loads(pickle.dumps(figure))._repr_png_()) == size
