"""A table of every layer, loss and metric: how to make it, and what to call it with. There is a file for each family.

The tests in tests/generic/test_every_layer.py run over all of it. Names, shapes and kinds of parameters are frozen in
golden/*.json, by family; a change on purpose is accepted by

    python -m tests.generic.descriptors [family ...]
"""

import importlib
import json
from pathlib import Path

import jax

import elegy
from tests.generic.descriptors.descriptor import Descriptor as Descriptor

_GOLDEN = Path(__file__).parents[1] / "golden"

# A family is a file of this package that has a list DESCRIPTORS.
FAMILIES: dict[str, list[Descriptor]] = {
    path.stem: importlib.import_module(f"tests.generic.descriptors.{path.stem}").DESCRIPTORS
    for path in sorted(Path(__file__).parent.glob("*.py"))
    if path.stem not in ("__init__", "__main__", "descriptor")
}
DESCRIPTORS = [descriptor for family in FAMILIES.values() for descriptor in family]


def describe(module: elegy.Module) -> dict[str, str]:
    """The dtype, shape and kind of each array of a module, by path."""
    described = {}
    for trainable in (True, False):
        for path, leaf in jax.tree_util.tree_leaves_with_path(module.get_parameters(trainable=trainable)):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            described[name] = f"{leaf.dtype}{list(leaf.shape)} {'trainable' if trainable else 'state'}"
    return dict(sorted(described.items()))


def golden(family: str) -> dict[str, dict[str, str]]:
    """What is frozen on disk."""
    return json.loads((_GOLDEN / f"{family}.json").read_text())


def freeze(family: str) -> None:
    """Writes what the modules of a family are now."""
    found = {}
    for descriptor in FAMILIES[family]:
        module = descriptor.factory(None)
        module(*descriptor.inputs)
        found[descriptor.name] = describe(module)
    (_GOLDEN / f"{family}.json").write_text(json.dumps(found, indent=2) + "\n")
