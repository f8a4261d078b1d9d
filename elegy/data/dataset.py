"""`Dataset`: samples by number."""

from __future__ import annotations

import abc
import typing as tp


class Dataset(abc.ABC):
    """Samples that can be had by their number: define `__getitem__` and `__len__`.

    Deriving from this class is not needed: any object with these two methods is a dataset, such as a list, or a
    map-style dataset of PyTorch or Hugging Face.

    ```python
    class Squares(elegy.data.Dataset):
        def __getitem__(self, index):
            return np.float32(index), np.float32(index**2)

        def __len__(self):
            return 100


    loader = elegy.data.DataLoader(Squares(), batch_size=32)
    assert [len(x) for x, y in loader] == [32, 32, 32, 4]
    ```
    """

    @abc.abstractmethod
    def __getitem__(self, index: int, /) -> tp.Any:
        """The sample with a number: an array or number, or a tuple or dict of such."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """How many samples there are."""
