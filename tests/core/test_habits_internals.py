"""Internals: the tables of what users of other libraries write."""

import equinox
import jax
import optax

import elegy
from elegy import habits


def test_what_is_to_be_written_instead_exists():
    """Each `elegy.…` and each `equinox.nn.…` that a hint names."""
    words = {
        word.strip(".,;:()").partition("(")[0]
        for table in (habits.LAYERS, habits.EVERYTHING, habits.LOSSES, habits.METRICS, habits.CALLBACKS)
        for text in table.values()
        for word in text.split()
        if word.startswith(("elegy.", "equinox.nn.", "optax.", "jax."))
    }
    assert len(words) > 20
    for word in words:
        eval(word, {"elegy": elegy, "equinox": equinox, "optax": optax, "jax": jax})


def test_no_hint_stands_before_a_name_that_is_here():
    pairs = {
        elegy.nn: habits.LAYERS,
        elegy.losses: habits.LOSSES,
        elegy.metrics: habits.METRICS,
        elegy.callbacks: habits.CALLBACKS,
    }
    for module, table in pairs.items():
        assert not {habits._plain(name) for name in module.__all__} & table.keys()
