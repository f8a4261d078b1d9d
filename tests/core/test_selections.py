"""`elegy.select`, and what selections drive: values, freezing, masks, gradients, optimisers, checkpoints."""

import functools
import pickle
import re
from typing import Any

import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, assume, given, settings

import elegy
from elegy.errors import CheckpointError, ParameterError, SelectionError
from tests.helpers import Affine, Counter, Norm, assert_close, assert_same, batch
from tests.strategies import picture, recipes

pytestmark = pytest.mark.slow

X, Y = batch()
select = elegy.select


class Encoder(elegy.Module):
    """Layers in a list and in a dict."""

    def __init__(self):
        self.layers = [Affine(4), Norm()]
        self.heads = {"mean": Affine(2), "scale": Affine(2)}

    def call(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.heads["mean"](x) * self.heads["scale"](x)


class Net(elegy.Module):
    """Modules made in `__init__` and in `call`, a layer of Equinox, a NumPy array."""

    def __init__(self):
        self.encoder = Encoder()
        self.foreign = eqx.nn.Linear(2, 3, key=jax.random.key(0))
        self.table = np.arange(3, dtype=np.float32)

    def call(self, x):
        x = jax.vmap(self.foreign)(self.encoder(x))
        Counter()()
        return Affine(1)(x * jnp.asarray(self.table)[None])


PATHS = (
    "encoder/layers/0/w",
    "encoder/layers/0/b",
    "encoder/layers/1/mean",
    "encoder/layers/1/var",
    "encoder/layers/1/scale",
    "encoder/heads/mean/w",
    "encoder/heads/mean/b",
    "encoder/heads/scale/w",
    "encoder/heads/scale/b",
    "foreign/weight",
    "foreign/bias",
    "table",
    "counter/n",
    "affine/w",
    "affine/b",
)
STATE = ("encoder/layers/1/mean", "encoder/layers/1/var", "table", "counter/n")
TRAINABLE = tuple(path for path in PATHS if path not in STATE)


@functools.cache
def _net(seed):
    return Net().init(X, rng=seed)


def net(seed=0):
    return _net(seed).copy()


def loss_of(module):
    return lambda: jnp.mean((module(X) - Y) ** 2)


def default_promotion(function, *args):
    """Optax does not run under the strict promotion of the test suite."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return function(*args)


# ---------------------------------------------------------------------------------------------------------------------
# What is selected
# ---------------------------------------------------------------------------------------------------------------------


def test_without_anything_it_is_everything():
    module = net()
    everything = select(module)
    assert everything.paths == PATHS and len(everything) == len(PATHS)
    assert_same(everything.get(), module.get_parameters())
    assert_same(select(module, trainable=True).get(), module.get_parameters(trainable=True))
    assert_same(select(module, trainable=False).get(), module.get_parameters(trainable=False))
    assert select(module, trainable=True).paths == TRAINABLE


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("affine/w", ["affine/w"]),
        ("affine", ["affine/w", "affine/b"]),
        ("affine/**", ["affine/w", "affine/b"]),
        ("**", PATHS),
        ("*", PATHS),
        ("*/*", [path for path in PATHS if path != "table"]),
        ("encoder/**/w", ["encoder/layers/0/w", "encoder/heads/mean/w", "encoder/heads/scale/w"]),
        ("**/mean", ["encoder/layers/1/mean", "encoder/heads/mean/w", "encoder/heads/mean/b"]),
        ("**/heads/*/b", ["encoder/heads/mean/b", "encoder/heads/scale/b"]),
        ("encoder/layers/0", ["encoder/layers/0/w", "encoder/layers/0/b"]),
        ("encoder/*/0/*", ["encoder/layers/0/w", "encoder/layers/0/b"]),
        ("encoder/layers", [path for path in PATHS if path.startswith("encoder/layers")]),
        ("*/we*", ["foreign/weight"]),
        ("**/*a*e/w", ["encoder/heads/scale/w", "affine/w"]),
        ("**/encoder/**/0/**/w", ["encoder/layers/0/w"]),
    ],
)
def test_paths_with_stars(pattern, expected):
    assert select(net(), pattern).paths == tuple(expected)


@pytest.mark.parametrize(
    "pattern", ["w", "affine/", "aff", "ffine/w", "Affine", "encoder/w", "affine/w/x", "*ffine/c", ""]
)
def test_a_path_is_anchored_at_both_ends_of_each_part(pattern):
    with pytest.raises(SelectionError):
        select(net(), pattern)


def test_classes():
    module = net()
    affine = [path for path in PATHS if re.search("layers/0|heads|affine", path)]
    assert select(module, Affine).paths == tuple(affine)
    assert select(module, Encoder).paths == PATHS[:9]
    assert select(module, elegy.Module).paths == select(module, Net).paths == PATHS
    assert select(module, eqx.nn.Linear).paths == ("foreign/weight", "foreign/bias")
    assert select(module, np.ndarray).paths == ("table",)


def test_a_subclass_is_of_its_base_class():
    class Wide(Affine):
        pass

    module = elegy.nn.Sequential(lambda: [Wide(3), Affine(2)]).init(X)
    assert select(module, Affine).paths == ("layers/0/w", "layers/0/b", "layers/1/w", "layers/1/b")
    assert select(module, Wide).paths == ("layers/0/w", "layers/0/b")


def test_predicates_of_a_path_and_an_array():
    module = net()
    matrices = select(module, lambda path, value: value.ndim == 2 and not path.startswith("foreign"))
    assert matrices == select(module, "**/w")
    assert select(module, lambda path, value: value.dtype == jnp.int32).paths == ("counter/n",)


def test_modules_of_the_tree():
    module = net()
    assert select(module, module.encoder.layers[1]) == select(module, Norm)
    assert select(module, module) == select(module)
    with pytest.raises(SelectionError, match="no array in affine, or affine is not one of its modules"):
        select(module, net().affine)


def test_several_are_united_and_each_must_fit():
    module = net()
    assert select(module, "affine", Norm) == select(module, "affine") | select(module, Norm)
    assert select(module, "affine", "affine/w") == select(module, "affine")
    with pytest.raises(SelectionError, match="nothing at 'afine'. Did you mean 'affine'"):
        select(module, "encoder", "afine")


def test_trainable_keeps_what_is_trainable_now():
    module = net()
    module.encoder.trainable = False
    assert select(module, "**/w", trainable=True).paths == ("affine/w",)
    assert select(module, "**/w", trainable=False).paths == PATHS[0:1] + PATHS[5:6] + PATHS[7:8]
    with pytest.raises(SelectionError, match="none of these arrays is trainable: .*encoder/layers/0/w"):
        select(module, "encoder", trainable=True)
    with pytest.raises(SelectionError, match="each is trainable: affine/b, affine/w"):
        select(module, "affine", trainable=False)


@pytest.mark.parametrize("what", [3, None, ["affine"], b"affine", 0.5])
def test_other_objects_are_refused(what):
    with pytest.raises(Exception, match="select"):
        select(net(), what)


def test_a_shared_module_has_one_path_everywhere(tmp_path):
    class Holder(elegy.Module):
        def __init__(self, inner):
            self.inner = inner

        def call(self, x):
            return self.inner(x)

    class Tied(elegy.Module):
        def __init__(self):
            inner = Affine(3)
            self.first = Holder(inner)
            self.second = inner
            self.third = [inner, Affine(3)]

        def call(self, x):
            return self.third[1](self.third[0](self.second(self.first(x))))

    module = Tied().init(X)
    paths = ("first/inner/w", "first/inner/b", "third/1/w", "third/1/b")
    assert select(module).paths == paths
    assert set(module.get_parameters()) == {"first", "third"}
    leaves = jax.tree_util.tree_leaves_with_path(module)
    assert tuple(jax.tree_util.keystr(keys, simple=True, separator="/") for keys, _ in leaves) == paths
    elegy.save(tmp_path / "tied.safetensors", module)
    assert_same(elegy.load(tmp_path / "tied.safetensors", like=select(module)), module)
    assert jax.tree.leaves(elegy.trainable_mask(module)) == [True] * 4

    new = select(module, "first").apply(jnp.zeros_like)
    assert new.second is new.first.inner is new.third[0] and not new.second.w.any() and new.third[1].w.any()
    assert select(module, module.second) == select(module, "first")
    frozen = select(module, "first/inner/w").freeze()
    assert frozen.second is frozen.first.inner and select(frozen, trainable=True).paths == paths[1:]
    with pytest.raises(SelectionError, match="found under its first path only"):
        select(module, "second/w")


def test_lists_and_dicts_of_modules():
    one, other = Affine(2).init(X), Norm().init(X)
    assert select([one, other], "*/scale", "0/w").paths == ("0/w", "1/scale")
    selection = select({"body": one, "head": other}, "body", trainable=True)
    assert selection.paths == ("body/w", "body/b")
    assert_same(selection.get(), {"body": one.get_parameters(), "head": {}})
    new = selection.apply(jnp.ones_like)
    assert (new["body"].w == 1).all() and new["head"] is not other


def test_a_module_in_two_of_a_list_is_selected_once_and_changed_in_both():
    shared = Affine(3)
    modules = [elegy.nn.Sequential([shared, Affine(3)]).init(X), elegy.nn.Sequential([shared]).init(X)]
    selection = select(modules, "*/layers/0/w")
    assert selection.paths == ("0/layers/0/w",)
    assert_same(selection.get(), [{"layers": ({"w": shared.w}, {})}, {}])
    new: Any = selection.apply(jnp.zeros_like)
    assert not new[0].layers[0].w.any() and not new[1].layers[0].w.any()
    assert jax.tree.leaves(selection.mask) == [True, False, False, False, True, False]
    assert jax.tree.leaves(selection.mask_for([module.get_parameters() for module in modules[:1]])) == [
        *[False, True],
        *[False, False],
    ]


def test_trees_of_other_libraries():
    tree = {"layer": eqx.nn.Linear(2, 3, key=jax.random.key(0)), "step": jnp.zeros([], jnp.int32), "name": "x"}
    selection = select(tree, "layer/weight")
    assert not selection.set({"layer": {"weight": jnp.zeros([3, 2])}})["layer"].weight.any()
    assert select(tree, trainable=True).paths == ("layer/weight", "layer/bias")
    with pytest.raises(SelectionError, match="only arrays of modules can be frozen"):
        selection.freeze()


def test_abstract_modules():
    module = jax.eval_shape(net)
    assert select(module).paths == PATHS
    assert select(module, "affine/w").get()["affine"]["w"].shape == (3, 1)


def test_inside_a_jax_transform():
    module = net()

    @jax.jit
    def scaled(module):
        return select(module, lambda path, value: value.ndim == 2).apply(lambda w: 2 * w)

    assert_same(scaled(module), select(module, "**/w", "foreign/weight").apply(lambda w: 2 * w))


# ---------------------------------------------------------------------------------------------------------------------
# What selects nothing
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("encoder/layer/0/w", "net has nothing at 'encoder/layer/0/w'. Did you mean 'encoder/layers/0/w'"),
        ("nothing_like_it", r"There is: encoder/layers/0/w, .* \(15 in all\)"),
        (elegy.nn.Conv2D, "net has no Conv2D. Its modules are: Net, Encoder, Affine, Norm, Counter"),
        (lambda path, value: False, "is true of no array"),
    ],
)
def test_an_empty_selection_says_what_there_is(what, message):
    with pytest.raises(SelectionError, match=message):
        select(net(), what)


def test_an_uninitialised_module_says_so():
    with pytest.raises(SelectionError, match="There is no array.\n  net is not initialised: call it, or init, before."):
        select(elegy.nn.Sequential(lambda: [], name="net"), "**")
    with pytest.raises(SelectionError, match="affine is not initialised"):
        select([Affine(2)], Affine)


def test_empty_combinations():
    module = net()
    with pytest.raises(
        SelectionError, match="& selects nothing: .*affine/w.* and .*foreign/weight.* no array in common"
    ):
        select(module, "affine") & select(module, "foreign")
    with pytest.raises(SelectionError, match="~ selects nothing: all 15 arrays of net were selected"):
        ~select(module)


def test_selections_of_two_trees_do_not_combine():
    module, other = net(), net()
    for combine in (lambda a, b: a & b, lambda a, b: a | b):
        with pytest.raises(SelectionError, match="these belong to two: .*affine/w"):
            combine(select(module, "affine/w"), select(other, "affine"))
    assert select(module) != select(other)
    # But the same modules in two lists are one tree.
    assert select([module, other], "0") | select([module, other], "1") == select([module, other])


def test_a_selection_moves_to_another_tree():
    module, other = net(), net(1)
    weights = select(module, "**/w")
    assert select(other, weights) == select(other, "**/w") == select(other, *weights.paths)
    assert_same(select(other, weights).set(weights.get()).affine.w, module.affine.w)
    with pytest.raises(SelectionError, match="encoder has no array at .*affine/w.*which are selected.*\n.*layers/0/w"):
        select(other.encoder, weights)


def test_a_selection_notices_when_its_arrays_are_gone():
    module = net()
    selection = select(module, "affine")
    module.reset()
    for use in (lambda: selection.paths, selection.get, selection.freeze, lambda: selection.mask):
        with pytest.raises(SelectionError, match="net has no array at affine/b, affine/w"):
            use()
    module.init(X)
    assert selection.paths == ("affine/w", "affine/b")


# ---------------------------------------------------------------------------------------------------------------------
# Algebra
# ---------------------------------------------------------------------------------------------------------------------


def some(examples):
    return settings(settings.get_profile("elegy"), max_examples=examples, suppress_health_check=list(HealthCheck))


subsets = st.integers(0, 2**64)


def selected(recipe, *numbers):
    """A module tree, and selections of it that are neither empty nor everything: the bits of a number say which."""
    module = recipe.build()
    paths = select(module).paths if jax.tree.leaves(module) else ()
    selections = []
    for number in numbers:
        chosen = {index for index in range(len(paths)) if number >> index % 64 & 1}
        assume(0 < len(chosen) < len(paths))
        counter = iter(range(len(paths)))
        selections.append(select(module, lambda path, value, chosen=chosen, counter=counter: next(counter) in chosen))
    return module, *selections


def nonempty(combine):
    """The combination, or None if it selects nothing."""
    try:
        return combine()
    except SelectionError:
        return None


@some(15)
@given(recipes(initialised=True), subsets, subsets)
def test_boolean_algebra(recipe, one, other):
    module, a, b = selected(recipe, one, other)
    everything = select(module)
    assert ~~a == a and a | a == a & a == a and hash(~~a) == hash(a)
    assert a | ~a == everything and nonempty(lambda: a & ~a) is None
    assert a | b == b | a and nonempty(lambda: a & b) == nonempty(lambda: b & a)
    assert nonempty(lambda: ~(a | b)) == nonempty(lambda: ~a & ~b)
    assert nonempty(lambda: ~(a & b)) in (~a | ~b, None)
    assert a & (a | b) == a and a & everything == a
    assert len(a) + len(~a) == len(everything) == len(jax.tree.leaves(module))


@some(15)
@given(recipes(initialised=True), subsets)
def test_masks_agree_with_paths_and_values(recipe, number):
    module, a = selected(recipe, number)
    assert jax.tree.structure(a.mask) == jax.tree.structure(module)
    flags = jax.tree.leaves(a.mask)
    names = [
        jax.tree_util.keystr(keys, simple=True, separator="/")
        for keys, _ in jax.tree_util.tree_leaves_with_path(module)
    ]
    assert tuple(name for name, flag in zip(names, flags, strict=True) if flag) == a.paths
    assert flags == [not flag for flag in jax.tree.leaves((~a).mask)]
    # The values are those of the leaves, and a mask of the dict picks the same ones.
    picked = [leaf for leaf, flag in zip(jax.tree.leaves(module), flags, strict=True) if flag]
    assert {id(leaf) for leaf in jax.tree.leaves(a.get())} == {id(leaf) for leaf in picked}
    parameters = module.get_parameters()
    by_name = jax.tree.map(lambda leaf, flag: id(leaf) if flag else None, parameters, a.mask_for(parameters))
    assert set(jax.tree.leaves(by_name)) == {id(leaf) for leaf in picked}
    assert jax.tree.leaves(a.mask_for(a.get())) == [True] * len(a)


@some(15)
@given(recipes(initialised=True), subsets)
def test_set_of_get_is_the_identity_and_changes_nothing(recipe, number):
    module, a = selected(recipe, number)
    before = picture(module)
    assert picture(a.set(a.get())) == before
    assert picture(a.apply(lambda value: value)) == before
    changed = a.apply(lambda value: value ^ True if value.dtype == bool else value + jnp.ones((), value.dtype))
    assert picture(module) == before
    # What is not selected is what it was; setting the old values undoes the change.
    rest = ~a
    assert_same(select(changed, rest).get(), rest.get())
    assert picture(select(changed, a).set(a.get())) == before


@some(15)
@given(recipes(initialised=True), subsets)
def test_freezing_and_unfreezing(recipe, number):
    module, a = selected(recipe, number)
    before = picture(module)
    frozen = a.freeze()
    trainable = set(nonempty_paths(module))
    assert set(nonempty_paths(frozen)) == trainable - set(a.paths)
    assert set(nonempty_paths(select(frozen, a).unfreeze())) >= trainable
    assert_same(frozen.get_parameters(), module.get_parameters())
    # Assigning speaks for all arrays again: nothing but what was declared trainable is.
    frozen.trainable = True
    module_all = module.copy()
    module_all.trainable = True
    assert nonempty_paths(frozen) == nonempty_paths(module_all)
    assert set(nonempty_paths(a.unfreeze())) == trainable | (set(nonempty_paths(module_all)) & set(a.paths))
    assert picture(module) == before


def nonempty_paths(module):
    found = nonempty(lambda: select(module, trainable=True))
    return () if found is None else found.paths


# ---------------------------------------------------------------------------------------------------------------------
# Values
# ---------------------------------------------------------------------------------------------------------------------


def test_get_has_the_form_of_get_parameters():
    module = net()
    assert jax.tree.map(jnp.shape, select(module, "**/w", "foreign/bias").get()) == {
        "encoder": {
            "layers": [{"w": (3, 4)}, {}],
            "heads": {"mean": {"w": (4, 2)}, "scale": {"w": (4, 2)}},
        },
        "foreign": eqx.tree_at(lambda layer: (layer.weight, layer.bias), module.foreign, (None, (3,))),
        "counter": {},
        "affine": {"w": (3, 1)},
    }


def test_get_gives_the_values_of_now():
    module = net()
    selection = select(module, "affine/b")
    module.set_parameters({"affine": {"b": jnp.ones(1)}})
    assert selection.get()["affine"]["b"][0] == 1


def test_set_takes_a_part():
    module = net()
    new = select(module, "**/w").set({"affine": {"w": jnp.zeros([3, 1])}})
    assert not new.affine.w.any() and (new.encoder.layers[0].w == module.encoder.layers[0].w).all()
    assert module.affine.w.any()


def test_set_names_every_problem_and_the_path():
    module = net()
    with pytest.raises(ParameterError) as caught:
        select(module, "affine", "encoder/layers").set(
            {
                "affine": {"w": jnp.zeros([1, 3]), "b": jnp.zeros(1, jnp.int32), "c": jnp.zeros(1)},
                "encoder": {"layers": [{"w": "text"}], "heads": {"mean": {"w": jnp.zeros([4, 2])}}},
            }
        )
    text = str(caught.value)
    assert "nothing was changed" in text
    assert "affine/w is float32[3, 1], and the new value is float32[1, 3]" in text
    assert "affine/b is float32[1], and the new value is int32[1]" in text
    assert "affine/c: not selected" in text and "encoder/heads/mean/w: not selected (selected: encoder/" in text
    assert "encoder/layers/0/w: expected an array of shape (3, 4), got str" in text


def test_set_of_what_is_not_a_dict():
    with pytest.raises(ParameterError, match="the value: not selected"):
        select(net(), "affine/b").set(jnp.zeros(1))


def test_apply_names_every_problem():
    with pytest.raises(ParameterError, match=r"(?s)affine/w is .*bfloat16.*affine/b is .*bfloat16"):
        select(net(), "affine").apply(lambda value: value.astype(jnp.bfloat16))


def test_a_copy_is_independent():
    module = net()
    new = select(module, "affine/w").apply(jnp.zeros_like)
    new.table[0] = 7
    new.set_parameters({"affine": {"b": jnp.ones(1)}})
    new(X)
    new.encoder.trainable = False
    assert module.table[0] == 0 and module.affine.b[0] == 0 and module.counter.n == 0 and module.encoder.trainable
    assert new.counter.n == 1


def test_a_selection_is_immutable_and_readable():
    selection = select(net(), "affine")
    with pytest.raises(AttributeError):
        selection.tree = None
    assert repr(selection) == "Selection(affine/w, affine/b)"
    assert {selection, select(selection.tree, "affine")} == {selection}
    with pytest.raises(TypeError, match="combines two selections, got a str"):
        selection & "affine"


# ---------------------------------------------------------------------------------------------------------------------
# Freezing
# ---------------------------------------------------------------------------------------------------------------------


def test_one_parameter_of_a_module_is_frozen():
    module = net()
    frozen = select(module, "**/w").freeze()
    assert select(frozen, trainable=True).paths == tuple(p for p in TRAINABLE if not p.endswith("/w"))
    assert frozen.affine.trainable and select(module, trainable=True).paths == TRAINABLE
    grads = elegy.grad(loss_of(frozen), modules=frozen)()
    assert set(grads["affine"]) == {"b"} and jax.tree.structure(grads) == jax.tree.structure(
        frozen.get_parameters(trainable=True)
    )
    assert repr(frozen.affine) == "Affine(width=1, w=f32[3,1] (frozen), b=f32[1])"


def test_arrays_of_another_library_are_frozen_one_by_one():
    frozen = select(net(), "foreign/weight").freeze()
    assert select(frozen, "foreign", trainable=True).paths == ("foreign/bias",)
    assert jax.tree.leaves(elegy.trainable_mask(frozen).foreign) == [False, True]
    assert select(select(frozen, "foreign").unfreeze(), trainable=True).paths == TRAINABLE


def test_a_part_of_a_parameter_that_is_a_tree():
    class Pair(elegy.Module):
        def call(self):
            return self.add_parameter("p", initializer={"a": jnp.ones(2), "b": [jnp.ones(3), jnp.ones(1)]})

    frozen = select(Pair().init(), "p/b/0").freeze()
    assert select(frozen, trainable=True).paths == ("p/a", "p/b/1")


def test_state_stays_state():
    module = net()
    assert select(select(module).unfreeze(), trainable=True).paths == TRAINABLE
    assert select(select(module, trainable=False).unfreeze(), trainable=True).paths == TRAINABLE
    # Freezing it is no change either, not even of the structure.
    assert jax.tree.structure(select(module, trainable=False).freeze()) == jax.tree.structure(module)


def test_a_part_of_a_frozen_module_is_unfrozen():
    module = net()
    module.trainable = False
    head = select(module, "affine/b").unfreeze()
    assert select(head, trainable=True).paths == ("affine/b",)
    both = select(head, "affine").unfreeze()
    assert select(both, trainable=True).paths == ("affine/w", "affine/b")
    both.trainable = True
    assert select(both, trainable=True).paths == TRAINABLE
    # And freezing it again is what it was.
    assert nonempty_paths(select(head, "affine/b").freeze()) == ()


def test_assigning_trainable_decides_for_all_arrays():
    module = select(net(), "**/w").freeze()
    module.trainable = True
    assert select(module, trainable=True).paths == TRAINABLE
    module = select(net(), "**/w").freeze()
    module.trainable = False
    assert nonempty_paths(module) == ()


@pytest.mark.parametrize(
    "trip",
    [
        lambda m: m.copy(),
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: jax.tree.map(lambda leaf: leaf, m),
        lambda m: jax.jit(lambda m: m)(m),
        lambda m: eqx.combine(*eqx.partition(m, eqx.is_array)),
    ],
    ids=["copy", "pickle", "tree.map", "jit", "equinox"],
)
def test_what_is_frozen_stays_so(trip):
    frozen = select(elegy.nn.Sequential(lambda: [elegy.nn.Linear(2)]).init(X), "**/w").freeze()
    assert select(trip(frozen), trainable=True).paths == ("layers/0/b",)


def test_freezing_is_a_structure_that_compiled_functions_see():
    module = net()
    frozen = select(module, "affine/w").freeze()
    assert jax.tree.structure(frozen) != jax.tree.structure(module)
    assert jax.tree.structure(frozen) == jax.tree.structure(select(module, "affine/w").freeze())
    assert jax.tree.structure(select(frozen, "affine/w").unfreeze()) == jax.tree.structure(module)
    assert "frozen=[('w', 0)]" in str(jax.tree.structure(frozen.affine))


def test_a_frozen_parameter_does_not_move():
    module = select(net(), "affine/w").freeze()
    optimizer = elegy.Optimizer(optax.adamw(0.1, weight_decay=0.1))
    before = module.copy()

    def step():
        loss, grads = elegy.value_and_grad(loss_of(module), modules=module)()
        optimizer.update(module, grads)

    elegy.jit(step, modules=[module, optimizer])()
    assert (module.affine.w == before.affine.w).all() and (module.affine.b != before.affine.b).any()


# ---------------------------------------------------------------------------------------------------------------------
# Masks
# ---------------------------------------------------------------------------------------------------------------------


def trainable_loss(parameters, rest):
    y, _ = elegy.combine(parameters, rest).apply(X)
    return jnp.mean((y - Y) ** 2)


def head_only(labels):
    return optax.partition({True: optax.sgd(0.5), False: optax.set_to_zero()}, labels)


def one_step(transformation, parameters, grads):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        updates, _ = transformation.update(grads, transformation.init(parameters), parameters)
        return optax.apply_updates(parameters, updates)


def test_masks_fit_optax_where_parameters_are_a_module():
    parameters, rest = elegy.partition(net())
    grads = jax.grad(trainable_loss)(parameters, rest)
    head = select(parameters, "affine")
    assert head.paths == ("affine/w", "affine/b")
    new = one_step(head_only(head.mask_for), parameters, grads)
    assert_close(new.affine.w, parameters.affine.w - 0.5 * grads.affine.w)
    assert_same(new.encoder.get_parameters(), parameters.encoder.get_parameters())
    for mask in (head.mask, head.mask_for):
        doubled = one_step(optax.masked(optax.scale(-2.0), mask), parameters, grads)
        assert_close(doubled.affine.b, parameters.affine.b - 2 * grads.affine.b)


def test_masks_fit_optax_where_parameters_are_a_dict():
    module = net()
    parameters = module.get_parameters(trainable=True)
    grads = elegy.grad(loss_of(module), modules=module)()
    head = select(module, "affine")
    for labels in (head.mask_for, head.mask_for(parameters)):
        new = one_step(head_only(labels), parameters, grads)
        assert_close(new["affine"]["w"], parameters["affine"]["w"] - 0.5 * grads["affine"]["w"])
        assert_same(new["encoder"], parameters["encoder"])


def test_a_mask_fits_equinox():
    module = net()
    head, rest = eqx.partition(module, select(module, "affine").mask)
    assert rest.affine.w is None and head.encoder.layers[0].w is None
    assert_same(eqx.combine(head, rest), module)


def test_a_mask_for_other_parameters_is_refused():
    module = net()
    body = select(module, "encoder", trainable=True)
    grads = elegy.grad(loss_of(module), modules=module, where="affine")()
    with pytest.raises(
        SelectionError, match=r"selected, but not among them: encoder/layers/0/w, .*encoder/heads/scale/b"
    ):
        one_step(optax.masked(optax.sgd(0.1), body.mask_for), grads, grads)
    with pytest.raises(SelectionError, match="not in net: afine/w"):
        select(module, "affine/w").mask_for({"afine": {"w": 0.0}, "affine": {"w": 0.0}})


# ---------------------------------------------------------------------------------------------------------------------
# Gradients
# ---------------------------------------------------------------------------------------------------------------------

WHERES: dict[str, Any] = {
    "a path": "affine",
    "a class": Affine,
    "a predicate": lambda path, value: value.ndim == 2,
    "a tuple": ("affine/b", "foreign"),
    "a selection": lambda module: select(module, "**/w"),
    "everything trainable": lambda module: select(module, trainable=True),
}


def where_of(name, module):
    return WHERES[name](module) if name in ("a selection", "everything trainable") else WHERES[name]


@pytest.mark.parametrize("name", WHERES)
def test_gradients_with_respect_to_a_selection(name):
    module = net()
    where = where_of(name, module)
    selection = select(module, *(where if isinstance(where, tuple) else [where]))

    def by_jax(values):
        return loss_of(selection.set(values))()

    expected_loss, expected = jax.value_and_grad(by_jax)(selection.get())
    loss, grads = elegy.value_and_grad(loss_of(module), modules=module, where=where)()
    assert_close(loss, expected_loss)
    assert_close(grads, expected)


def test_gradients_in_the_pure_form():
    module, other = net(), net(1)
    selection = select(module, "affine")

    def loss(module):
        return loss_of(module)()

    (value, updated), grads = elegy.value_and_grad(loss, where=selection)(other)
    assert updated.counter.n == 1 and other.counter.n == 0
    assert_close(grads.get_parameters(), elegy.grad(loss_of(other), modules=other, where=selection)())
    grads, updated = elegy.grad(loss, where="affine/b")(module)
    assert grads.affine.b.shape == (1,) and len(jax.tree.leaves(grads)) == 1


def test_gradients_of_a_module_that_is_initialised_by_the_call():
    module = Net()
    grads = elegy.grad(loss_of(module), modules=module, where="affine/w")()
    assert grads["affine"]["w"].shape == (3, 1) and module.counter.n == 1


def test_gradients_of_several_modules():
    one, other = Affine(3), Affine(1)
    modules = {"body": one, "head": other}

    def loss():
        return jnp.mean((other(one(X)) - Y) ** 2)

    grads = elegy.grad(loss, modules=modules, where="head")()
    assert_close(grads["head"], elegy.grad(loss, modules=other)())
    assert grads["body"] == {}


def test_gradients_inside_a_compiled_function():
    module = net()
    step = elegy.jit(lambda: elegy.grad(loss_of(module), modules=module, where="**/w")(), modules=module)
    expected = elegy.grad(loss_of(module), modules=module)()
    grads = step()
    assert_close(grads["affine"]["w"], expected["affine"]["w"])
    step()
    assert step.traces == 1


@pytest.mark.parametrize(
    ("prepare", "where", "message"),
    [
        (lambda m: select(m, "affine/w").freeze(), "affine", "selects what is frozen: affine/w"),
        (lambda m: select(m, "**").freeze(), Affine, "selects what is frozen: encoder/layers/0/w, encoder/layers/0/b"),
        (lambda m: m, "counter", r"nothing that can be trained: counter/n \(state\)"),
        (lambda m: m, "encoder/layers/1/mean", r"nothing that can be trained: encoder/layers/1/mean \(state\)"),
        (lambda m: m, ("affine", "counter"), r"nothing that can be trained: counter/n \(state\)"),
        (lambda m: m, "affin", "nothing at 'affin'. Did you mean 'affine'"),
        (lambda m: m, [], r"where=\[\] selects nothing of net"),
        (lambda m: m, (), r"where=\(\) selects nothing of net"),
    ],
)
@pytest.mark.parametrize("user", ["value_and_grad", "grad", "Optimizer"])
def test_what_is_not_trainable_is_refused(prepare, where, message, user):
    module = prepare(net())
    before = picture(module)
    with pytest.raises(SelectionError, match=message):
        if user == "Optimizer":
            elegy.Optimizer(optax.sgd(0.1), where=where).parameters(module)
        else:
            getattr(elegy, user)(loss_of(module), modules=module, where=where)()
    assert picture(module) == before


@pytest.mark.parametrize("where", ["encoder", Encoder, "the module", ["encoder/layers/1", "encoder/heads"]])
def test_the_state_below_what_is_selected_is_left_out(where):
    module = net()
    where = module.encoder if where == "the module" else where
    grads = elegy.grad(loss_of(module), modules=module, where=where)()
    whole = elegy.grad(loss_of(module), modules=module)()["encoder"]
    if isinstance(where, list):
        del whole["layers"][0]["w"], whole["layers"][0]["b"]
    assert_same(jax.tree.leaves(grads), jax.tree.leaves(whole))
    if not isinstance(where, elegy.Module):
        optimizer = elegy.Optimizer(optax.sgd(0.1), where=where)
        assert jax.tree.structure(optimizer.parameters(module)) == jax.tree.structure(grads)


def test_where_or_parameters_fn():
    with pytest.raises(TypeError, match="not both"):
        elegy.value_and_grad(lambda: 0.0, modules=Affine(1), parameters_fn=lambda m: m, where="w")


# ---------------------------------------------------------------------------------------------------------------------
# Optimisers
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["path", "selection"])
def test_an_optimizer_of_a_selection(kind):
    module = net()
    before = module.copy()
    head = select(module, "affine")
    where = "affine" if kind == "path" else head
    optimizer = elegy.Optimizer(optax.adam(0.1), where=where)

    def step():
        loss, grads = elegy.value_and_grad(loss_of(module), modules=module, where=where)()
        optimizer.update(module, grads)
        return loss

    step = elegy.jit(step, modules=[module, optimizer])
    losses = [float(step()) for _ in range(3)]
    assert losses[-1] < losses[0] and step.traces <= 2
    assert_same(module.encoder.get_parameters(trainable=True), before.encoder.get_parameters(trainable=True))

    # By hand.
    reference, transformation = before, optax.adam(0.1)
    state = transformation.init(select(reference, "affine").get())
    for _ in range(3):
        grads, reference = elegy.grad(lambda m: loss_of(m)(), where="affine")(reference)
        parameters = select(reference, "affine")
        updates, state = default_promotion(transformation.update, grads.get_parameters(), state, parameters.get())
        reference = parameters.set(default_promotion(optax.apply_updates, parameters.get(), updates))
    assert_close(module.affine.get_parameters(), reference.affine.get_parameters())


@pytest.mark.parametrize(
    ("optimised", "differentiated", "messages"),
    [
        ("affine", "foreign", ["only among the gradients: foreign/", "only among the parameters: affine/b, affine/w"]),
        ("affine", ("affine", "foreign"), ["only among the gradients: foreign/weight, foreign/bias"]),
        (("affine", "foreign"), "affine", ["only among the parameters: foreign/weight, foreign/bias"]),
        (None, "affine", ["only among the parameters: encoder/"]),
        ("affine", None, ["only among the gradients: encoder/"]),
    ],
)
@pytest.mark.parametrize("started", [False, True])
def test_gradients_of_another_selection_are_refused(optimised, differentiated, messages, started):
    module = net()
    optimizer = elegy.Optimizer(optax.sgd(0.1), where=optimised)
    if started:
        optimizer.update(module, elegy.grad(loss_of(module), modules=module, where=optimised)())
    before = picture(module.affine)
    grads = elegy.grad(loss_of(module), modules=module, where=differentiated)()
    with pytest.raises(ParameterError) as caught:
        optimizer.update(module, grads)
    assert all(message in str(caught.value) for message in messages)
    assert "with the where= of the optimiser" in str(caught.value)
    assert picture(module.affine) == before


def test_optax_itself_refuses_gradients_of_another_selection():
    module = net()
    head, body = select(module, "affine"), select(module, "foreign")
    grads = elegy.grad(loss_of(module), modules=module, where=body)()
    for transformation in (optax.adam(0.1), optax.sgd(0.1)):
        state = transformation.init(head.get())
        with pytest.raises((ValueError, TypeError)):
            updates, _ = default_promotion(transformation.update, grads, state, head.get())
            default_promotion(optax.apply_updates, head.get(), updates)


def test_what_an_optimizer_is_to_update_must_be_trainable():
    module = select(net(), "affine/w").freeze()
    with pytest.raises(SelectionError, match="selects what is frozen: affine/w"):
        elegy.Optimizer(optax.sgd(0.1), where="affine").parameters(module)
    with pytest.raises(TypeError, match="give its path"):
        elegy.Optimizer(optax.sgd(0.1), where=module.affine)


def test_a_model_trains_what_its_optimizer_selects():
    module = net()
    before = module.copy()
    model = elegy.Model(
        module=module,
        loss=elegy.losses.MeanSquaredError(),
        optimizer=elegy.Optimizer(optax.sgd(0.1), where="affine"),
    )
    model.fit(np.asarray(X), np.asarray(Y), batch_size=3, epochs=1, verbose=0)
    trained = model.module
    assert (trained.affine.w != before.affine.w).any()
    assert_same(trained.foreign, before.foreign)


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints
# ---------------------------------------------------------------------------------------------------------------------


def test_a_part_of_a_module_is_saved_and_loaded(tmp_path):
    path = tmp_path / "head.safetensors"
    module, other = net(), net(1)
    head = select(module, "affine", "foreign", "counter", "table", "encoder/layers/1")
    elegy.save(path, head)
    loaded = elegy.load(path, like=select(other, head))
    assert isinstance(loaded, Net) and loaded is not other
    assert_same(select(loaded, head).get(), head.get())
    assert_same((~select(loaded, head)).get(), (~select(other, head)).get())
    # The names are those of the whole module.
    whole = elegy.load(path, like=other, strict=False)
    assert_same(whole, loaded)
    assert isinstance(loaded.table, np.ndarray)


def test_a_part_of_a_checkpoint_must_fit(tmp_path):
    path = tmp_path / "head.safetensors"
    module = net()
    elegy.save(path, select(module, "affine"))
    with pytest.raises(CheckpointError, match=r"(?s)'foreign/weight': not in the file.*'affine/b': not in `like`"):
        elegy.load(path, like=select(module, "affine/w", "foreign"))
    assert_same(elegy.load(path, like=select(module, "affine/w"), strict=False), module)


# ---------------------------------------------------------------------------------------------------------------------
# Modules
# ---------------------------------------------------------------------------------------------------------------------


def test_replace_gives_copies_and_keeps_sharing():
    class Tied(elegy.Module):
        def __init__(self):
            self.layers = [Affine(3), Affine(3)]
            self.tied = self.layers[0]

        def call(self, x):
            return self.tied(self.layers[1](self.layers[0](x)))

    module, seen = Tied().init(X), []

    def replacement(layer):
        seen.append(layer)
        return elegy.nn.Linear(3).init(X)

    new = select(module, "layers/0").replace(replacement)
    assert (
        type(new.layers[0]) is elegy.nn.Linear and new.tied is new.layers[0] and new.layers[1] is not module.layers[1]
    )
    assert len(seen) == 1 and seen[0] is not module.layers[0] and seen[0].w is module.layers[0].w
    assert new(X).shape == (6, 3) and type(module.tied) is Affine
    assert_same(new.layers[1].get_parameters(), module.layers[1].get_parameters())


def test_replace_of_a_module_and_of_one_below_it_is_refused():
    class Outer(elegy.Module):
        def call(self, x):
            return Affine(1)(x) * self.add_parameter("scale", [1, 1], initializer=jnp.ones)

    module = Outer().init(X)
    with pytest.raises(SelectionError, match="affine is below outer"):
        select(module, "**").replace(lambda inner: inner)
    with pytest.raises(SelectionError, match="are in none"):
        select({"w": jnp.ones(2)}, "w").replace(lambda inner: inner)


# ---------------------------------------------------------------------------------------------------------------------
# Modules that share
# ---------------------------------------------------------------------------------------------------------------------


class Holder(elegy.Module):
    def __init__(self, inner):
        self.inner = inner

    def call(self, x):
        return self.inner(x)


def pair():
    shared = Affine(3)
    return [Holder(shared).init(X), Holder(shared).init(X)]


@pytest.mark.parametrize(
    "make",
    [
        lambda chosen: chosen.freeze(),
        lambda chosen: chosen.unfreeze(),
        lambda chosen: chosen.set(chosen.get()),
        lambda chosen: chosen.apply(lambda w: 2 * w),
        lambda chosen: select(chosen.tree, Affine).replace(lambda layer: Affine(3).init(X)),
    ],
    ids=["freeze", "unfreeze", "set", "apply", "replace"],
)
def test_modules_of_a_list_that_share_go_on_sharing(make):
    modules = pair()
    chosen = select(modules, "**/w")
    assert chosen.paths == ("0/inner/w",)
    one, other = make(chosen)
    assert one.inner is other.inner and one.inner is not modules[0].inner
    first, second = make(select([modules[0].inner] * 2, "**/w"))
    assert first is second


def test_the_module_that_a_list_shares_is_frozen_once():
    modules = pair()
    frozen = select(modules, "**/w").freeze()
    assert select(frozen, trainable=True).paths == ("0/inner/b",)
    assert select(select(frozen, "**/w").unfreeze(), trainable=True).paths == ("0/inner/w", "0/inner/b")
    again = select([modules[0].inner] * 2, "**/w").freeze()
    assert select(again, trainable=True).paths == ("0/b",)
    # What was frozen is a copy.
    assert select(modules, trainable=True).paths == ("0/inner/w", "0/inner/b")


@pytest.mark.parametrize("make", [lambda chosen: chosen.freeze(), lambda chosen: chosen.apply(lambda w: 2 * w)])
def test_what_is_selected_does_not_keep_the_numpy_arrays_of_the_other(make):
    module = net()
    other = make(select([module], "**/affine/w"))[0]
    assert isinstance(other.table, np.ndarray)
    module.table[0] = 7
    assert other.table[0] == 0


def test_containers_of_modules_and_static_values():
    """Where the static entries of a list come first, the keys of the others have gaps."""

    class Net(elegy.Module):
        def __init__(self):
            self.layers = [jnp.tanh, Affine(2), "text", {"a": Affine(2), "b": 1}]

        def call(self, x):
            return self.layers[3]["a"](self.layers[1](self.layers[0](x)))

    net = Net().init(jnp.ones((1, 3)))
    selection = elegy.select(net, "layers/1/b") | elegy.select(net, "layers/3/**")
    assert selection.paths == ("layers/1/b", "layers/3/a/w", "layers/3/a/b")
    assert [bool(leaf) for leaf in jax.tree.leaves(selection.mask)] == [False, True, True, True]
    changed = selection.apply(lambda value: value + 1)
    np.testing.assert_array_equal(changed.layers[1].b, net.layers[1].b + 1)
    np.testing.assert_array_equal(changed.layers[3]["a"].w, net.layers[3]["a"].w + 1)
    assert changed.layers[1].w is net.layers[1].w and changed.layers[0] is jnp.tanh
    frozen = elegy.select(net, "layers/1").freeze()
    assert jax.tree.leaves(elegy.trainable_mask(frozen)) == [False, False, True, True]
    replaced = eqx.tree_at(lambda net: net.layers[3]["a"].b, net, jnp.full(2, 7.0))
    np.testing.assert_array_equal(replaced.layers[3]["a"].b, [7.0, 7.0])
