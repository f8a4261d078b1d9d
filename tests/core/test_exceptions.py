"""An exception anywhere leaves nothing behind, and a retry gives what an untouched run gives."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy
from elegy import hooks


@pytest.fixture(autouse=True)
def plain_tracebacks() -> Iterator[None]:
    """JAX looks at each frame of each traceback to hide its own, which is most of the cost of these tests."""
    before = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")
    yield
    jax.config.update("jax_traceback_filtering", before)


class Fault:
    """Raises when it is called for the n-th time; counts otherwise."""

    def __init__(self):
        self.at = None
        self.kind: type[BaseException] = RuntimeError
        self.reached = 0

    def __call__(self, place: str) -> None:
        now, self.reached = self.reached, self.reached + 1
        if now == self.at:
            raise self.kind(f"fault {now}, {place}")


def make_model(fault: Fault, size: int = 3) -> elegy.Module:
    """A module that uses every hook, with a fault before, between and after them."""

    class Leaf(elegy.Module):
        def __init__(self, size, name=None):
            super().__init__(name=name)
            fault("at the start of a constructor")
            self.size = size
            fault("at the end of a constructor")

        def call(self, x):
            def initializer(key, shape, dtype):
                fault("in an initializer with a key")
                return jax.random.normal(key, shape, dtype)

            def drawing_initializer(shape, dtype):
                fault("in an initializer that draws")
                return jax.random.normal(elegy.next_rng_key(), shape, dtype)

            fault("before add_parameter")
            w = self.add_parameter("w", [x.shape[-1], self.size], initializer=initializer)
            fault("between parameters")
            b = self.add_parameter("b", [self.size], initializer=drawing_initializer)
            count = self.add_parameter("count", [], jnp.int32, trainable=False)
            fault("before update_parameter")
            self.update_parameter("count", count + 1)
            fault("after update_parameter")
            elegy.add_loss("l2", jnp.sum(w**2))
            fault("after add_loss")
            elegy.add_metric("mean", jnp.mean(x))
            fault("after add_metric")
            elegy.add_summary("input", x)
            fault("after add_summary")
            noise = jax.random.normal(elegy.next_rng_key(), [self.size])
            fault("after next_rng_key")
            self.set_parameters({"b": self.b * 0.5})
            fault("after set_parameters")
            return x @ w + (b + noise)[None]

    class Net(elegy.Module):
        def __init__(self):
            self.scale = self.add_parameter("scale", [], initializer=jnp.ones)
            self.blocks = [Leaf(size)]
            self.held = {"state": jnp.zeros(2)}

        def call(self, x):
            fault("at the start of call")
            x = self.blocks[0](x) * self.scale
            with elegy.name_context("tail"), elegy.training_context(not elegy.training()):
                fault("in two contexts")
            with elegy.hooks_context():
                elegy.add_loss("inner", jnp.sum(x))
                fault("in a hooks_context")
            x = self.head(x)
            fault("at the end of call")
            return x

        @elegy.compact
        def head(self, x):
            fault("at the start of a compact method")
            x = Leaf(1, name="out")(x)
            fault("at the end of a compact method")
            return x

    return Net()


# ---------------------------------------------------------------------------------------------------------------------
# What must not change
# ---------------------------------------------------------------------------------------------------------------------


def nodes_below(module: elegy.Module) -> list[elegy.Module]:
    found = [module]
    for node in found:
        found.extend(child for child in node.submodules.values() if not any(child is other for other in found))
    return found


class Snapshot(NamedTuple):
    """All that there is to see, objects by identity."""

    attributes: list[dict[str, Any]]
    leaves: list[Any]
    structure: Any
    initialized: list[bool]
    thread: dict[str, Any]
    rng: Any
    collected: Any
    births: list[Any]


def snapshot(module: elegy.Module) -> Snapshot:
    nodes = nodes_below(module)
    rng = elegy.get_rng()
    data, root, count, _ = rng.snapshot()
    thread = {
        name: list(value) if isinstance(value, list) else dict(value) if isinstance(value, dict) else value
        for name, value in vars(hooks.state).items()
        if name != "constructed"  # counts on and on
    }
    thread["training"] = elegy.training()
    return Snapshot(
        [dict(vars(node)) for node in nodes],
        jax.tree.leaves(module),
        jax.tree.structure(module),
        [node.initialized for node in nodes],
        thread,
        (rng, np.asarray(data).tolist(), None if root is None else np.asarray(root).tolist(), count),
        [elegy.get_losses(), elegy.get_metrics(), [entry[1:] for entry in elegy.get_summaries() or []]],
        [node._elegy_born for node in nodes],
    )


def assert_unchanged(before: Snapshot, after: Snapshot, message: str) -> None:
    def same(a, b):
        """Equality by identity, through plain lists and dicts."""
        if isinstance(a, dict):
            return isinstance(b, dict) and list(a) == list(b) and all(same(a[name], b[name]) for name in a)
        if isinstance(a, (list, tuple)):
            return isinstance(b, type(a)) and len(a) == len(b) and all(map(same, a, b))
        return a is b or (isinstance(a, (int, str)) and a == b)

    def same_values(a, b):
        """As above, with equal arrays for identical ones: what is taken back is summed up again."""
        return jax.tree.structure(a) == jax.tree.structure(b) and values(a) == values(b)

    equal = {
        "attributes": same(before.attributes, after.attributes),
        "leaves": same(before.leaves, after.leaves),
        "structure": before.structure == after.structure,
        "initialized": same(before.initialized, after.initialized),
        "thread": same(before.thread, after.thread),
        "rng": same(before.rng, after.rng),
        "collected": same_values(before.collected, after.collected),
        "births": before.births == after.births,
    }
    changed = [what for what, unchanged in equal.items() if not unchanged]
    names = [name for name in {**before.thread, **after.thread} if before.thread.get(name) != after.thread.get(name)]
    assert not changed, f"{message}: {changed}, {names}"


def values(tree: Any) -> list[Any]:
    leaves = jax.tree.leaves(tree)
    return [leaf if isinstance(leaf, str) else (str(leaf.dtype), np.asarray(leaf).tolist()) for leaf in leaves]


def outcome(result: Any, module: elegy.Module) -> Any:
    """What a run leaves behind, in a form that compares bit for bit between two worlds."""
    data, _, count, _ = elegy.get_rng().snapshot()
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(module)[0]]
    summaries = [(path, values(value)) for _, path, value in elegy.get_summaries() or []]
    return (
        values(result),
        paths,
        values(module),
        np.asarray(data).tolist(),
        count,
        {name: values(value) for name, value in (elegy.get_losses() or {}).items()},
        {name: values(value) for name, value in (elegy.get_metrics() or {}).items()},
        summaries,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Where an exception may strike
# ---------------------------------------------------------------------------------------------------------------------

x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2)


def loss_of(model):
    return lambda x: jnp.mean(model(x) ** 2)


def update_of(model):
    def update(x):
        loss, grads = elegy.value_and_grad(loss_of(model), modules=model)(x)
        parameters = model.get_parameters(trainable=True)
        model.set_parameters(jax.tree.map(lambda p, g: p - 0.1 * g, parameters, grads))
        return loss

    return update


def keep_shape(compiled):
    compiled(x[:2])
    return compiled


# From a model to the function that is tried.
SCENARIOS = {
    "eager, first call": lambda m: m,
    "eager, later call": lambda m: (m(x), m)[1],
    "init": lambda m: lambda x: jax.tree.leaves(m.init(x)),
    "init with a key": lambda m: lambda x: jax.tree.leaves(m.init(x, rng=jax.random.key(3))),
    "apply, first call": lambda m: lambda x: m.apply(x, rng=3),
    "apply, later call": lambda m: (m(x), lambda x: m.apply(x))[1],
    "elegy.jit, first call": lambda m: elegy.jit(m),
    "elegy.jit, later call": lambda m: (m(x), elegy.jit(lambda x: m(x), modules=m))[1],
    "elegy.jit, later trace": lambda m: keep_shape(elegy.jit(m)),
    "elegy.value_and_grad, first call": lambda m: elegy.value_and_grad(loss_of(m), modules=m),
    "elegy.value_and_grad, later call": lambda m: (m(x), elegy.value_and_grad(loss_of(m), modules=m))[1],
    "elegy.value_and_grad, pure": lambda m: (
        m(x),
        lambda x: elegy.value_and_grad(lambda m, x: jnp.mean(m(x) ** 2))(m, x),
    )[1],
    "elegy.value_and_grad in elegy.jit, first call": lambda m: elegy.jit(update_of(m), modules=m),
    "elegy.value_and_grad in elegy.jit, later call": lambda m: (m(x), elegy.jit(update_of(m), modules=m))[1],
    "elegy.jit in elegy.value_and_grad": lambda m: (
        m(x),
        elegy.value_and_grad(elegy.jit(loss_of(m), modules=m), modules=m),
    )[1],
    "elegy.jit in elegy.jit, first call": lambda m: elegy.jit(elegy.jit(loss_of(m), modules=m), modules=m),
}


@contextlib.contextmanager
def world():
    """The surroundings of a run: a seed, a mode, and collections that hold something already."""
    fault = Fault()
    with elegy.rng_context(7), elegy.training_context(False), elegy.hooks_context(summaries=True):
        elegy.next_rng_key()
        elegy.add_loss("before", jnp.float32(1))
        elegy.add_metric("before", jnp.float32(2))
        elegy.add_summary("before", jnp.float32(3))
        yield fault, make_model(fault)


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_exception_at_any_point_leaves_everything_as_it_was(name):
    """At each third point, that is, and at another third in the next scenario."""
    with world() as (fault, model):
        function = SCENARIOS[name](model)
        fault.reached = 0
        result = function(x)
        points = fault.reached
        expected = outcome(result, model)
    assert points >= 20

    with world() as (fault, model):
        function = SCENARIOS[name](model)
        before = snapshot(model)
        for fault.at in range(list(SCENARIOS).index(name) % 3, points, 3):
            fault.reached, fault.kind = 0, (RuntimeError, KeyboardInterrupt)[fault.at % 2]
            with pytest.raises(fault.kind, match=f"fault {fault.at},") as error:
                function(x)
            assert_unchanged(before, snapshot(model), f"{name}: {error.value!r}")
        fault.at = None
        assert outcome(function(x), model) == expected


@pytest.mark.parametrize("name", ["eager, first call", "elegy.jit, first call"])
def test_a_retry_after_each_single_exception(name):
    """As above with a new world for each point, so that one exception cannot fix what another one broke."""
    with world() as (fault, model):
        function = SCENARIOS[name](model)
        fault.reached = 0
        expected = outcome(function(x), model)
        points = fault.reached
    for point in range(0, points, 7 if "jit" in name else 3):
        with world() as (fault, model):
            function = SCENARIOS[name](model)
            fault.reached, fault.at = 0, point
            with pytest.raises(RuntimeError, match=f"fault {point},"):
                function(x)
            fault.at = None
            assert outcome(function(x), model) == expected, point


# ---------------------------------------------------------------------------------------------------------------------
# Exceptions that the user catches, and exceptions of the surroundings
# ---------------------------------------------------------------------------------------------------------------------


class Counter(elegy.Module):
    """State, a parameter and, when asked, an exception after both."""

    def call(self, x, fail=False):
        count = self.add_parameter("count", [], jnp.int32, trainable=False)
        w = self.add_parameter("w", [x.shape[-1]], initializer=jax.nn.initializers.normal())
        self.update_parameter("count", count + 1)
        elegy.add_loss("count", jnp.sum(w))
        if fail:
            raise RuntimeError("as asked")
        return x * w[None]


def catching(first_fails):
    class Parent(elegy.Module):
        def __init__(self):
            self.child = Counter()
            self.other = Counter()

        def call(self, x, fail=first_fails):
            x = self.other(x)
            try:
                x = self.child(x, fail=fail)
            except RuntimeError:
                x = x * 2
            return self.other(x)

    return Parent()


@pytest.mark.parametrize("how", ["eager", "init"])
def test_a_caught_exception_of_a_submodule_undoes_that_submodule_alone(how):
    parent = catching(first_fails=True)
    x = jnp.ones([2, 3])
    if how == "init":
        parent.init(x)
    else:
        parent(x)
        assert parent.other.count == 2
    assert parent.other.initialized
    assert not parent.child.initialized
    assert "w" not in vars(parent.child) and "count" not in vars(parent.child)
    assert parent.get_parameters()["child"] == {}
    assert jax.tree.structure(parent) == jax.tree.structure(parent.copy())


def test_a_compiled_function_that_catches_the_first_exception_of_a_submodule_ends():
    """The submodule cannot be initialised by its caller, and nothing goes round in circles."""
    parent = catching(first_fails=True)
    before = snapshot(parent)
    with pytest.raises(elegy.errors.ParameterError, match="parent/child"):
        elegy.jit(parent)(jnp.ones([2, 3]))
    assert_unchanged(before, snapshot(parent), "elegy.jit")


def test_a_submodule_whose_first_call_was_caught_is_initialised_by_a_later_one():
    parent = catching(first_fails=True)
    x = jnp.ones([2, 3])
    parent(x)
    parent(x, fail=False)
    assert parent.child.initialized and parent.child.count == 1 and parent.other.count == 4


def test_a_caught_exception_restores_the_losses_of_the_failing_part_only():
    parent = catching(first_fails=False)
    x = jnp.ones([2, 3])
    parent(x)
    with elegy.hooks_context():
        parent(x)
        whole = elegy.get_losses()["count_loss"]
    with elegy.hooks_context():
        parent(x, fail=True)
        part = elegy.get_losses()["count_loss"]
    np.testing.assert_allclose(part, whole - jnp.sum(parent.child.w), rtol=1e-5)


def test_a_caught_exception_in_a_transform_inside_a_transform():
    module = Counter().init(jnp.ones([1, 3]))

    def careful(x):
        module(x)
        try:
            elegy.value_and_grad(lambda x: module(x, fail=True).sum(), modules=module)(x)
        except RuntimeError:
            pass
        return module(x)

    eager = module.copy()
    elegy.jit(careful, modules=module)(jnp.ones([2, 3]))
    assert module.count == 2
    assert eager.count == 0


def test_an_exception_after_a_call_inside_elegy_jit_undoes_the_call():
    module = Counter().init(jnp.ones([1, 3]))

    def fails(x):
        module(x)
        elegy.next_rng_key()
        raise RuntimeError("late")

    before = snapshot(module)
    for transformed in (
        elegy.jit(fails, modules=module),
        elegy.value_and_grad(fails, modules=module),
        elegy.jit(elegy.value_and_grad(fails, modules=module), modules=module),
    ):
        with pytest.raises(RuntimeError, match="late"):
            transformed(jnp.ones([2, 3]))
        assert_unchanged(before, snapshot(module), "after a failing function")


@pytest.mark.parametrize("initialised", [False, True])
def test_an_output_that_jax_refuses_leaves_everything_as_it_was(initialised):
    module = Counter()
    if initialised:
        module.init(jnp.ones([1, 3]))

    def returns_an_object(x):
        module(x)
        elegy.next_rng_key()
        return object()

    before = snapshot(module)
    with pytest.raises(TypeError):
        elegy.jit(returns_an_object, modules=module)(jnp.ones([2, 3]))
    assert_unchanged(before, snapshot(module), "elegy.jit")
    with pytest.raises(TypeError):
        elegy.value_and_grad(returns_an_object, modules=module)(jnp.ones([2, 3]))
    assert_unchanged(before, snapshot(module), "elegy.value_and_grad")


@pytest.mark.parametrize("initialised", [False, True])
def test_a_loss_that_is_no_scalar_leaves_everything_as_it_was(initialised):
    module = Counter()
    if initialised:
        module.init(jnp.ones([1, 3]))
    before = snapshot(module)
    with pytest.raises(TypeError, match="scalar"):
        elegy.value_and_grad(module)(jnp.ones([2, 3]))
    assert_unchanged(before, snapshot(module), "a loss that is no scalar")


def test_nothing_to_differentiate_leaves_the_module_uninitialised():
    module = Counter()
    module.trainable = False
    before = snapshot(module)
    with pytest.raises(elegy.errors.NothingToDifferentiateError):
        elegy.value_and_grad(lambda x: module(x).sum(), modules=module)(jnp.ones([2, 3]))
    assert_unchanged(before, snapshot(module), "nothing to differentiate")


def test_wrong_arguments_leave_the_module_uninitialised():
    module = Counter()
    before = snapshot(module)
    for wrong in (lambda: module(), lambda: module(jnp.ones(()), 1, 2), lambda: module.init(), lambda: module.jit()):
        with pytest.raises((TypeError, IndexError)):
            wrong()
        assert_unchanged(before, snapshot(module), "wrong arguments")


def test_a_later_call_with_another_shape_leaves_everything_as_it_was():
    module = Counter().init(jnp.ones([1, 3]))
    before = snapshot(module)
    for call in (module, elegy.jit(module)):
        with pytest.raises(elegy.errors.ParameterError):
            call(jnp.ones([2, 4]))
        assert_unchanged(before, snapshot(module), "another shape")


def test_summaries_of_an_outer_context_are_taken_back_too():
    module = Counter().init(jnp.ones([1, 3]))
    with elegy.hooks_context(summaries=True):
        elegy.add_summary("before", jnp.ones([2, 3]))
        with elegy.hooks_context():
            elegy.add_loss("before", jnp.float32(1))
            with pytest.raises(RuntimeError):

                class Outer(elegy.Module):
                    def call(self, x):
                        module(x)
                        elegy.add_summary("mine", x)
                        raise RuntimeError("as asked")

                Outer()(jnp.ones([2, 3]))
            assert elegy.get_losses().keys() == {"before_loss"}
        assert [path for _, path, _ in elegy.get_summaries()] == ["before"]


def test_what_a_failing_call_froze_is_trainable_again():
    class Freezer(elegy.Module):
        def __init__(self):
            self.child = Counter()

        def call(self, x, fail=False):
            y = self.child(x)
            if fail:
                self.child.trainable = False
                raise RuntimeError("as asked")
            return y

    module = Freezer()
    module(jnp.ones([2, 3]))
    before = snapshot(module)
    with pytest.raises(RuntimeError):
        module(jnp.ones([2, 3]), fail=True)
    assert module.child.trainable
    assert_unchanged(before, snapshot(module), "frozen in a failing call")


@pytest.mark.parametrize("how", ["eager", "init", "elegy.jit", "elegy.value_and_grad"])
def test_a_module_frozen_in_the_first_call_is_whole(how):
    """Taking back what an init pass did besides creating must not take back what it created."""

    class Backbone(elegy.Module):
        def __init__(self):
            self.inner = Counter()
            self.inner.trainable = False

        def call(self, x):
            return self.inner(x)

    class Net(elegy.Module):
        def call(self, x):
            return Counter()(Backbone()(x)).sum()

    net = Net()
    x = jnp.ones([2, 3])
    for _ in range(2):
        {
            "eager": net,
            "init": lambda x: net.init(x)(x),
            "elegy.jit": elegy.jit(net),
            "elegy.value_and_grad": elegy.value_and_grad(net),
        }[how](x)
    assert not net.backbone.inner.trainable and net.counter.trainable
    assert net.backbone.inner.count == 2
    trainable = net.get_parameters(trainable=True)
    assert set(trainable["counter"]) == {"w"} and not jax.tree.leaves(trainable["backbone"])
    assert jax.tree.structure(net.copy()) == jax.tree.structure(net)


def test_what_a_failing_call_reset_is_initialised_again():
    class Resetter(elegy.Module):
        def __init__(self):
            self.child = Counter()

        def call(self, x, fail=False):
            y = self.child(x)
            if fail:
                self.child.reset()
                raise RuntimeError("as asked")
            return y

    module = Resetter()
    module(jnp.ones([2, 3]))
    before = snapshot(module)
    with pytest.raises(RuntimeError):
        module(jnp.ones([2, 3]), fail=True)
    assert_unchanged(before, snapshot(module), "reset in a failing call")
    module(jnp.ones([2, 3]))
    assert module.child.count == 2


@pytest.mark.parametrize("how", ["eager", "elegy.jit", "elegy.value_and_grad", "init"])
def test_modes_and_streams_set_in_a_failing_call_are_set_back(how):
    class Setter(elegy.Module):
        def call(self, x):
            with elegy.training_context(False), elegy.rng_context(3):
                elegy.next_rng_key()
                raise RuntimeError("as asked")

    module = Setter()
    before = snapshot(module)
    call = {
        "eager": module,
        "init": module.init,
        "elegy.jit": elegy.jit(module),
        "elegy.value_and_grad": elegy.value_and_grad(module),
    }[how]
    traces = []
    stock = jax.jit(lambda x: traces.append(elegy.training()))
    stock(jnp.ones(3))
    with pytest.raises(RuntimeError, match="as asked"):
        call(jnp.ones([2, 3]))
    stock(jnp.ones(3))
    assert elegy.training() and traces == [True]
    with elegy.training_context(False):
        stock(jnp.ones(3))
    assert traces == [True, False]
    assert_unchanged(before, snapshot(module), how)


def test_a_failing_constructor_leaves_the_random_stream_as_it_was():
    class Fragile(elegy.Module):
        def __init__(self, fail):
            self.w = self.add_parameter("w", [3], initializer=jax.nn.initializers.normal())
            if fail:
                elegy.next_rng_key()
                raise RuntimeError("as asked")

    def run(fail):
        with elegy.rng_context(5):
            if fail:
                with pytest.raises(RuntimeError):
                    Fragile(True)
            assert elegy.get_module() is None
            return np.asarray(Fragile(False).w), np.asarray(jax.random.key_data(elegy.next_rng_key()))

    for failed, untouched in zip(run(True), run(False), strict=True):
        np.testing.assert_array_equal(failed, untouched)


def test_a_failing_constructor_leaves_no_open_door():
    """An object whose `__init__` raised must not stay assignable, nor lend its id to another module."""
    kept = []

    class Fragile(elegy.Module):
        def __init__(self):
            kept.append(self)
            raise RuntimeError("as asked")

    with pytest.raises(RuntimeError):
        Fragile()
    with pytest.raises(elegy.errors.FrozenModuleError):
        kept[0].value = 1


def test_contexts_left_by_an_exception_are_closed():
    before = elegy.get_static_context()
    rng = elegy.get_rng()
    for context in (
        elegy.hooks_context(summaries=True),
        elegy.name_context("name"),
        elegy.training_context(False),
        elegy.rng_context(3),
    ):
        with pytest.raises(RuntimeError), context:
            raise RuntimeError
        assert elegy.get_static_context() == before
        assert elegy.get_rng() is rng


def test_the_error_is_the_user_s_own_and_names_the_module_once():
    class Inner(elegy.Module):
        def call(self, x):
            self.add_parameter("w", [3])
            raise KeyError("mine")

    class Outer(elegy.Module):
        def call(self, x):
            return Inner()(x)

    for call in (Outer(), elegy.jit(Outer()), Outer().init):
        with pytest.raises(KeyError, match="mine") as caught:
            call(jnp.ones([2, 3]))
        notes = [note for note in getattr(caught.value, "__notes__", []) if "outer/inner" in note]
        assert len(notes) == 1
        assert "float32[2,3]" in notes[0]


# ---------------------------------------------------------------------------------------------------------------------
# Leaks
# ---------------------------------------------------------------------------------------------------------------------


# The others are what these do at their second call, or are made of these.
@pytest.mark.parametrize(
    "name",
    [
        "init",
        "apply, first call",
        "elegy.jit, first call",
        "elegy.jit, later trace",
        "elegy.value_and_grad, first call",
        "elegy.value_and_grad, pure",
        "elegy.value_and_grad in elegy.jit, first call",
        "elegy.jit in elegy.value_and_grad",
        "elegy.jit in elegy.jit, first call",
    ],
)
def test_no_tracer_leaks(name, no_leaks):
    with world() as (_, model):
        function = SCENARIOS[name](model)
        jax.block_until_ready(function(x))
        jax.block_until_ready(function(x))
        for leaf in jax.tree.leaves((model, elegy.get_losses(), elegy.get_metrics(), elegy.get_summaries())):
            assert not isinstance(leaf, jax.core.Tracer)


def test_no_tracer_leaks_from_plain_jax(no_leaks):
    model = make_model(Fault())
    model.init(x)
    y, model = jax.jit(lambda m, x: (m(x), m))(model, x)
    ensemble = jax.vmap(lambda key: make_model(Fault()).init(x, rng=key))(jax.random.split(jax.random.key(0), 2))
    y, ensemble = jax.vmap(lambda m: (m(x), m))(ensemble)
    params, rest = elegy.partition(model)

    def loss(params, rest):
        whole = elegy.combine(params, rest)
        return jnp.sum(whole(x)), whole

    (_, model), _ = jax.value_and_grad(loss, has_aux=True)(params, rest)
    model, _ = jax.lax.scan(lambda m, x: ((m(x), m)[1], None), model, jnp.stack([x, x]))
    assert model.blocks[0].count == 4
    jax.eval_shape(lambda m: (m(x), m), model)


@pytest.mark.parametrize("name", ["init", "elegy.jit, first call", "elegy.value_and_grad, first call"])
def test_no_tracer_leaks_after_an_exception(name, no_leaks):
    with world() as (fault, model):
        function = SCENARIOS[name](model)
        fault.reached, fault.at = 0, 20
        with pytest.raises(RuntimeError, match="fault 20"):
            function(x)
        fault.at = None
        jax.block_until_ready(function(x))


# ---------------------------------------------------------------------------------------------------------------------
# Transactions
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True])
def test_compiled_updates_in_one_call_do_not_keep_the_arrays_in_between(compiled):
    class Counts(elegy.Module):
        def call(self):
            self.update_parameter("n", self.add_parameter("n", [], trainable=False) + 1)

    class Runs(elegy.Module):
        def __init__(self):
            self.counts = Counts().init()

        def call(self, fail):
            step = elegy.jit(self.counts) if compiled else self.counts
            step()
            before = len(jax.live_arrays())
            for _ in range(20):
                step()
            alive = len(jax.live_arrays()) - before
            if fail:
                raise RuntimeError("as asked")
            return alive

    module = Runs()
    with elegy.training_context(False):
        module.init(False)
        assert module(False) <= 1
    with pytest.raises(RuntimeError):
        module(True)
    assert module.counts.n == 21
