"""Internals: how many checkers are on, and how often annotations are read."""

import gc

import beartype
import pytest
from jaxtyping import Array, Float

import elegy
from elegy.typechecking import annotations, switch
from tests.helpers import checked, mismatch, ones

pytestmark = pytest.mark.usefixtures("no_checker_left_on")

WRONG = ones(2, 2)  # no argument of Twice


class Twice(elegy.Module):
    def call(self, x: Float[Array, "n"]) -> Float[Array, "n"]:
        return 2 * x


def test_a_plain_call_takes_the_place_of_the_one_before():
    twice = Twice()
    for _ in range(3):
        elegy.typechecker(beartype.beartype)
        with elegy.typechecker(None):
            twice(WRONG)
        with mismatch():
            twice(WRONG)
        with checked():  # a plain call in a block holds longer than the block
            elegy.typechecker(None)
        twice(WRONG)
        gc.collect()  # an error that is kept holds what it came through
        assert len(switch._switched) == 1
    switch._switched.clear()
    switch._switch()


def test_a_context_that_is_kept_can_be_left_after_a_plain_call():
    twice = Twice()
    with elegy.typechecker(None):
        kept = checked()
        elegy.typechecker(None)
        gc.collect()
        assert len(switch._switched) == 3
        with kept:
            twice(WRONG)  # the plain call is newer
        assert len(switch._switched) == 2
    twice(WRONG)
    switch._switched.clear()
    switch._switch()


def test_annotations_of_a_class_are_read_once(monkeypatch):
    read, texts = annotations._read, []
    monkeypatch.setattr(annotations, "_read", lambda text, *rest: texts.append(text) or read(text, *rest))

    class Net(elegy.Module):
        w: Float[Array, "n"]

        def __init__(self, w):
            self.w = self.add_parameter("w", initializer=w)

        def call(self):
            return self.w

    Net(ones(3))()
    first = len(texts)
    Net(ones(3))()
    Net(ones(4))()
    assert 0 < first == len(texts)
