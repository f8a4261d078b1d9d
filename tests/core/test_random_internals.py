"""Internals: a ledger of all keys that the package derives, which shows that none is used twice."""

import jax
import numpy as np

import elegy
from elegy import random

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


def data(key):
    return tuple(np.asarray(jax.random.key_data(key)).ravel().tolist())


class Ledger:
    """Every key that is split or folded, every key that comes out of that, and every key that the user got."""

    def __init__(self, monkeypatch):
        self.parents: list[tuple[int, ...]] = []
        self.produced: list[tuple[int, ...]] = []
        self.handed: list[tuple[int, ...]] = []
        split, fold = random._split, random._fold

        def traced(*values):
            return any(isinstance(value, jax.core.Tracer) for value in values)

        def recording_split(key_data, impl):
            pair = split(key_data, impl)
            if not traced(key_data, *pair):
                self.parents.append(tuple(key_data.tolist()))
                self.produced.extend(tuple(half.tolist()) for half in pair)
            return pair

        def recording_fold(key_data, number, impl):
            child = fold(key_data, number, impl)
            if not traced(key_data, child):
                self.parents.append(tuple(key_data.tolist()))
                self.produced.append(tuple(child.tolist()))
            return child

        monkeypatch.setattr(random, "_split", recording_split)
        monkeypatch.setattr(random, "_fold", recording_fold)

    def hand(self, key):
        if not isinstance(key, jax.core.Tracer):
            self.handed.append(data(key))
        return key


def test_a_key_that_the_user_got_is_never_derived_nor_consumed_again(monkeypatch):
    ledger = Ledger(monkeypatch)

    def initializer(key, shape, dtype):
        ledger.hand(key)
        return jax.random.normal(key, shape, dtype)

    def drawing(shape, dtype):
        return jax.random.normal(ledger.hand(elegy.next_rng_key()), shape, dtype)

    class Greedy(elegy.Module):
        def __init__(self):
            self.c = self.add_parameter("c", [2], initializer=initializer)

        def call(self, x):
            self.add_parameter("a", [2], initializer=initializer)
            self.add_parameter("b", [2], initializer=drawing)
            ledger.hand(elegy.next_rng_key())
            return x

    class Whole(elegy.Module):
        def call(self, x):
            return Greedy()(Greedy()(x))

    elegy.set_rng(jax.random.key(123))
    for _ in range(3):
        ledger.hand(elegy.next_rng_key())
    for module in (Whole(), Whole(), Greedy()):
        module(X)
        module(X)
        ledger.hand(elegy.next_rng_key())
    keys = elegy.jit(lambda: [jax.random.key_data(elegy.next_rng_key()) for _ in range(3)])
    ledger.handed.extend(tuple(np.asarray(key).tolist()) for _ in range(3) for key in keys())
    lazily = Whole()
    elegy.jit(lazily)(X)
    ledger.hand(elegy.next_rng_key())

    handed = ledger.handed
    assert len(handed) > 40
    assert len(set(handed)) == len(handed), "one key was handed out twice"
    assert not set(handed) & set(ledger.parents), "the library derives keys from a key that the user got"
    # What the library derives it derives once, apart from one parameter's key which is asked for again in one pass.
    assert data(jax.random.key(123)) not in handed

    derived = []
    for key in set(handed):
        typed = jax.random.wrap_key_data(np.asarray(key, np.uint32))
        derived.extend(map(data, jax.random.split(typed, 4)))
        derived.append(data(jax.random.fold_in(typed, 0x696E6974)))
    assert len(set(derived)) == len(derived)
    assert not set(derived) & (set(handed) | set(ledger.produced) | set(ledger.parents))
