"""Datasets that worker processes import: nothing of JAX is wanted here."""

import os

import numpy as np

import elegy


class Squares:
    """Sample `i` is a pair of arrays, a number, and something drawn."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        x = np.full([2, 3], index, np.float32)
        return {"x": x, "n": index, "pair": (x.sum(), [index, index + 1])}, elegy.data.sample_rng().normal()


class Failing:
    """Raises at one sample, and exits at another."""

    def __init__(self, size, fails_at=None, exits_at=None):
        self.size = size
        self.fails_at = fails_at
        self.exits_at = exits_at

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index == self.fails_at:
            raise KeyError("no such file")
        if index == self.exits_at:
            os._exit(3)
        return index


class Unreadable:
    """It can be pickled, and not read again."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return index

    def __reduce__(self):
        return refuse, ()


def refuse():
    raise OSError("the archive is closed")


class Odd(Exception):
    """It can be pickled, and not read again."""

    def __init__(self, first, second):
        super().__init__(first)


class Oddly:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise Odd(1, 2)


class Process:
    """Each sample is the process in which it was made."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return os.getpid()


class Stuck:
    """A sample that is never there, for who has no need of the others."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        read, _ = os.pipe()
        os.read(read, 1)
