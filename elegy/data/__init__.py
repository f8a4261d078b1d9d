"""Data that come in batches: loaders, sources of any library, and batches that are on the device in time."""

import typing as _tp

from elegy import habits as _habits
from elegy.data.batch import Batch as Batch
from elegy.data.dataset import Dataset as Dataset
from elegy.data.loader import DataLoader as DataLoader, sample_rng as sample_rng
from elegy.data.prefetching import Prefetched as Prefetched, prefetch as prefetch
from elegy.data.source import Source as Source, as_source as as_source

__all__ = [
    "as_source",
    "Batch",
    "DataLoader",
    "Dataset",
    "prefetch",
    "Prefetched",
    "sample_rng",
    "Source",
]

if not _tp.TYPE_CHECKING:  # a static checker would take every name to be there
    __getattr__ = _habits.missing_attribute("elegy.data", __all__, {})
