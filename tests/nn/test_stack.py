"""`Stack` and `Ensemble` against lists of separate modules, and the memory and compile time that they are for."""

import copy
import itertools
import pickle
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy
from elegy.nn import Ensemble, Linear, Stack

X = jax.random.normal(jax.random.key(1), [5, 3])


class Block(elegy.Module):
    """Parameters, state, draws, hooks."""

    def call(self, x, scale=1.0, *, shift=0.0):
        y = elegy.nn.BatchNormalization()(Linear(x.shape[-1])(x))
        y = elegy.nn.Dropout(0.3)(y)
        elegy.add_loss("size", jnp.mean(y**2))
        elegy.add_metric("average", jnp.mean(y))
        return x + jnp.tanh(scale * y + shift)


class Pair(elegy.Module):
    """Takes an input of its layer, and puts something out."""

    def call(self, x, layer_input, scale=1.0):
        y = jnp.tanh(Linear(x.shape[-1])(x) + scale * layer_input)
        return y, y.sum()


class Listed(elegy.Module):
    def __init__(self, factory, n):
        self.layers = [factory() for _ in range(n)]

    def call(self, x, *args, **kwargs):
        for layer in self.layers:
            x = layer(x, *args, **kwargs)
        return x


class Stacked(elegy.Module):
    def __init__(self, factory, n, **options):
        self.layers = Stack(factory, n, **options)

    def call(self, x, *args, **kwargs):
        return self.layers(x, *args, **kwargs)


def assert_same(one, other, rtol=2e-5, atol=1e-6):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def stacked(parameters):
    """What the parameters of a list of blocks are in a stack."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *parameters)


# ---------------------------------------------------------------------------------------------------------------------
# Stack
# ---------------------------------------------------------------------------------------------------------------------


def test_initial_values_are_those_of_separate_blocks():
    listed, stack = Listed(Block, 4).init(X, rng=3), Stacked(Block, 4).init(X, rng=3)
    expected = stacked([block.get_parameters() for block in listed.layers])
    for one, other in zip(
        jax.tree.leaves(stack.layers.blocks.get_parameters()), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("how", "options"),
    [
        ("eager", {}),
        ("eager", {"remat": True, "unroll": 2}),
        ("elegy.jit", {}),
        ("elegy.jit", {"remat": True}),
        ("elegy.jit", {"unroll": True}),
    ],
    ids=str,
)
def test_a_stack_computes_what_separate_blocks_compute(options, how):
    """Outputs, draws, losses, state and gradients."""
    results = []
    for model in (Listed(Block, 3), Stacked(Block, 3, **options)):
        model.init(X, rng=3)
        step = elegy.value_and_grad(lambda x, model=model: jnp.mean(model(x) ** 2), modules=model)
        step = step if how == "eager" else elegy.jit(step, modules=model)
        with elegy.hooks_context(), elegy.rng_context(7):
            loss, grads = step(X)
            metrics = list(elegy.get_metrics().values())
            results.append((loss, elegy.get_losses(), sum(metrics) / len(metrics), grads, model.get_parameters()))
    (*listed, listed_grads, listed_parameters), (*stack, grads, parameters) = results
    assert_same(stack, listed)
    assert_same(grads["layers"]["blocks"], stacked(listed_grads["layers"]), rtol=1e-4)
    assert_same(parameters["layers"]["blocks"], stacked(listed_parameters["layers"]))


def test_a_policy_says_what_is_stored():
    model = Stack(lambda: Linear(3), 3, remat=jax.checkpoint_policies.dots_saveable).init(X, rng=0)
    plain = Stack.from_blocks(list(model))
    grads = [elegy.grad(lambda x, m=m: jnp.sum(m(x) ** 2), modules=m)(X) for m in (model, plain)]
    assert_same(*grads)


def test_inputs_and_outputs_of_single_blocks():
    inputs = jnp.arange(4.0)
    stack = Stack(Pair, 4, outputs=True)
    y, outputs = stack(X, 2.0, layer_inputs=inputs)
    x, expected = X, []
    for block, layer_input in zip(stack, inputs, strict=True):
        x, output = block(x, layer_input, 2.0)
        expected.append(output)
    assert_same((y, outputs), (x, jnp.stack(expected)))


def test_every_block_gets_the_other_arguments():
    stack, listed = Stacked(Block, 2).init(X, rng=0), Listed(Block, 2).init(X, rng=0)
    with elegy.training_context(False):
        assert_same(stack(X, 2.0, shift=X), listed(X, 2.0, shift=X))


def test_indexing_gives_ordinary_blocks():
    stack = Stack(Block, 4).init(X)
    with elegy.training_context(False):
        x = X
        for index in range(4):
            assert isinstance(stack[index], Block)
            x = stack[index](x)
        assert_same(stack(X), x)
        assert_same(stack[1:3](X), stack[2](stack[1](X)))
        assert_same(stack[-1](X), stack[3](X))
    assert len(stack) == 4 and len(stack[1:3]) == 2
    with pytest.raises(IndexError, match=r"stack\[4\]: there are 4"):
        stack[4]


def test_a_list_of_blocks_becomes_a_stack_and_a_list_again():
    listed = Listed(Block, 3).init(X)
    stack = Stack.from_blocks(listed.layers)
    for one, other in zip(stack, listed.layers, strict=True):
        assert_same(one.get_parameters(), other.get_parameters(), rtol=0, atol=0)
    again = Stack.from_blocks(list(stack))
    assert_same(again.get_parameters(), stack.get_parameters(), rtol=0, atol=0)


def test_blocks_that_create_parameters_in_their_constructor():
    class Scale(elegy.Module):
        def __init__(self):
            self.w = self.add_parameter("w", [3], initializer=jax.nn.initializers.normal())
            self.offset = jnp.ones(3)

        def call(self, x):
            return x * self.w[None] + self.offset[None]

    stack = Stack(Scale, 3)
    assert stack.blocks.w.shape == stack.blocks.offset.shape == (3, 3)
    assert len(np.unique(stack.blocks.w)) == 9
    y = X
    for block in stack:
        y = block(y)
    assert_same(stack(X), y)


def test_foreign_layers_and_shared_modules_in_blocks():
    class Net(elegy.Module):
        def __init__(self):
            self.foreign = eqx.nn.Linear(3, 3, key=elegy.next_rng_key())
            self.one = Linear(3)
            self.two = self.one

        def call(self, x):
            return self.two(self.one(jax.vmap(self.foreign)(x)))

    stack = Stack(Net, 2)
    y = X
    stack.init(X)
    for block in stack:
        assert block.one is block.two
        y = block(y)
    assert_same(stack(X), y)
    assert set(stack.get_parameters()["blocks"]) == {"foreign", "one"}


@pytest.mark.parametrize("outer", [2, 3])
def test_a_stack_of_stacks(outer):
    class Nested(elegy.Module):
        def __init__(self):
            self.layers = [Listed(Block, 2) for _ in range(outer)]

        def call(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    model = Stacked(lambda: Stacked(Block, 2), outer).init(X, rng=1)
    assert model.layers.blocks.layers.blocks.linear.w.shape == (outer, 2, 3, 3)
    assert len(np.unique(model.layers.blocks.layers.blocks.linear.w)) == outer * 2 * 9
    with elegy.training_context(False):
        x = X
        for block in model.layers:
            for inner in block.layers:
                x = inner(x)
        assert_same(model(X), x)


def test_a_stack_made_inside_call():
    class Net(elegy.Module):
        def call(self, x):
            return Linear(1)(Stack(lambda: Linear(3), 4)(x))

    net = Net().init(X)
    assert net.stack.blocks.w.shape == (4, 3, 3)
    assert elegy.jit(net)(X).shape == (5, 1)
    assert net.stack is net.stack


def test_separate_initialisations_under_vmap():
    keys = jax.random.split(jax.random.key(0), 3)
    models = jax.vmap(lambda key: Stacked(Block, 2).init(X, rng=key))(keys)
    one = Stacked(Block, 2).init(X, rng=keys[1])
    assert_same(jax.tree.map(lambda leaf: leaf[1], models).get_parameters(), one.get_parameters(), rtol=1e-6)


def test_a_stack_is_a_value_of_jax():
    stack = Stack(Block, 3).init(X, rng=0)
    with elegy.training_context(False):
        expected = stack(X)
        assert_same(jax.jit(lambda m, x: m(x))(stack, X), expected)
        assert_same(jax.vmap(lambda m, x: m(x), in_axes=(None, 0))(stack, X[None])[0], expected)
        for again in (copy.deepcopy(stack), pickle.loads(pickle.dumps(stack))):
            assert_same(again(X), expected)


def test_the_program_does_not_grow_with_depth():
    def lines(n):
        model = Stack(lambda: Linear(3), n).init(X)
        gradient = jax.grad(lambda model, x: jnp.sum(model(x)))
        return len(str(jax.make_jaxpr(gradient)(model, X)).splitlines())

    assert lines(48) == lines(2)


def test_a_function_is_traced_once():
    traces = []

    class Counting(elegy.Module):
        def call(self, x):
            traces.append(1)
            return Linear(3)(x)

    model = Stack(Counting, 8).init(X)
    traces.clear()
    jax.make_jaxpr(lambda model, x: model(x))(model, X)
    assert len(traces) == 1


def test_what_cannot_be_stacked_is_refused():
    sizes = itertools.count(1)
    with pytest.raises(elegy.errors.StructureError, match="number 1 has another structure"):
        Stack(lambda: Linear(next(sizes)), 2)
    with pytest.raises(ValueError, match="n is the number of modules, at least 1; got 0"):
        Stack(Block, 0)
    with pytest.raises(
        elegy.errors.StructureError, match=r"w is float32\[3,3\] in number 0, and float32\[2,3\] in number 1"
    ):
        Stack.from_blocks([Linear(3).init(X), Linear(3).init(X[:, :2])])
    first, half = Linear(3).init(X), Linear(3).init(X)
    half = eqx.tree_at(lambda linear: linear.b, half, half.b.astype(jnp.bfloat16))
    for make in (Stack.from_blocks, Ensemble.from_members):
        with pytest.raises(
            elegy.errors.StructureError, match=r"b is float32\[3\] in number 0, and bfloat16\[3\] in number 1"
        ):
            make([first, half])


@pytest.mark.parametrize("make", [Stack, Ensemble])
def test_a_module_in_the_place_of_the_factory_is_refused(make):
    with pytest.raises(TypeError, match=rf"{make.__name__}: expected a factory.*got a module, Linear.\n.*lambda: "):
        make(Linear(3), 2)
    with elegy.typechecker(None), pytest.raises(TypeError, match=r"got 5.\n.*lambda: "):
        make(5, 2)


@pytest.mark.parametrize("option", ["outputs", "remat"])
def test_options_of_a_stack_that_are_no_bools_are_refused(option):
    with elegy.typechecker(None), pytest.raises(TypeError, match=f"Stack: {option} must be True or False, got 1"):
        Stack(Block, 2, **{option: 1})
    assert getattr(Stack(Block, 2, **{option: np.True_}), option) is True


def test_an_index_is_one_integer_in_range():
    stack = Stack(Block, 3, name="encoder").init(X)
    for index in (2, -1, np.int32(2), np.array(2), jnp.array(2), jnp.array(-1)):
        assert_same(stack[index].get_parameters(), stack[2].get_parameters())
    for index in (3, -4, np.int32(3), jnp.array(3), jnp.array(-4)):
        with pytest.raises(IndexError, match=r"encoder\[(3|-4)\]: there are 3"):
            stack[index]
    for index in (
        jnp.array([0, 1]),
        jnp.array(True),
        True,
        np.True_,
        np.array([1]),
        jnp.array(1.0),
        1.0,
        [1],
        "1",
        None,
    ):
        with pytest.raises(TypeError, match=r"encoder\[.*\]: the index must be one integer, or a slice.\n.*for i in"):
            stack[index]
    for index in (jnp.array([0, 1]), jnp.array(True), jnp.array(1.0)):
        with pytest.raises(TypeError, match="the index must be one integer"):
            jax.jit(lambda index: stack[index].linear.w)(index)
    beyond = jax.jit(lambda index: stack[index])(7)  # of a traced one the value is not known
    assert_same(beyond.get_parameters(), stack[2].get_parameters())


def test_layer_inputs_of_the_wrong_size_are_refused():
    with pytest.raises(ValueError, match="length|size|leading"):
        Stack(Pair, 4, outputs=True)(X, layer_inputs=jnp.arange(3.0))


def test_an_initializer_that_looks_at_data_is_refused():
    class Centred(elegy.Module):
        def call(self, x):
            return x - self.add_parameter("centre", [1, 3], initializer=lambda: x.mean(0, keepdims=True))

    with pytest.raises(elegy.errors.ParameterError, match="stacked"):
        Stack(Centred, 2)(X)


def test_an_array_of_a_constructor_inside_call_is_refused():
    class Holder(elegy.Module):
        def __init__(self):
            self.array = jnp.ones(3)

        def call(self, x):
            return x * self.array[None]

    class Net(elegy.Module):
        def call(self, x):
            return Holder()(x)

    with pytest.raises(elegy.errors.StructureError, match="array.*has no leading axis"):
        Stack(Net, 2)(X)


def test_a_failing_first_call_leaves_the_stack_uninitialised():
    class Fails(elegy.Module):
        def call(self, x, fail=False):
            y = Linear(3)(x)
            if fail:
                raise RuntimeError
            return y

    stack = Stack(Fails, 3)
    before = jax.tree.structure(stack)
    with pytest.raises(RuntimeError):
        stack(X, True)
    assert jax.tree.structure(stack) == before and not jax.tree.leaves(stack)
    stack(X)


# ---------------------------------------------------------------------------------------------------------------------
# Ensemble
# ---------------------------------------------------------------------------------------------------------------------


def test_members_compute_what_they_compute_alone():
    ensemble = Ensemble(Block, 4).init(X)
    with elegy.training_context(False):
        y = ensemble(X)
        assert y.shape == (4, 5, 3)
        assert_same(y, jnp.stack([member(X) for member in ensemble]))
    assert len(np.unique(ensemble.members.linear.w)) == 4 * 9


def test_the_plain_form_gives_different_members_too():
    keys = jax.random.split(jax.random.key(0), 4)
    members = jax.vmap(lambda key: Block().init(X, rng=key))(keys)
    assert len(np.unique(members.linear.w)) == 4 * 9
    with elegy.training_context(False):
        y = jax.vmap(lambda member: member(X))(members)
    ensemble = Ensemble.from_members([jax.tree.map(lambda leaf, i=i: leaf[i], members) for i in range(4)])
    with elegy.training_context(False):
        assert_same(ensemble(X), y)


def test_members_have_state_and_draws_of_their_own():
    ensemble = Ensemble(Block, 4).init(X)
    ensemble(X)
    assert len(np.unique(ensemble.members.batch_normalization.mean)) == 4 * 3
    dropout = Ensemble(lambda: elegy.nn.Dropout(0.5), 4)
    y = dropout(jnp.ones([50]))
    assert len(np.unique(y, axis=0)) == 4
    assert len(np.unique(elegy.jit(dropout)(jnp.ones([50])), axis=0)) == 4
    y = jax.jit(lambda m, x: (m(x), m))(dropout, jnp.ones([50]))[0]
    assert len(np.unique(y, axis=0)) == 4


def test_hooks_of_members_are_averaged():
    ensemble = Ensemble(Block, 3).init(X)
    with elegy.training_context(False), elegy.hooks_context():
        ensemble(X)
        losses, metrics = elegy.get_losses(), elegy.get_metrics()
    expected = []
    for member in ensemble:
        with elegy.training_context(False), elegy.hooks_context():
            member(X)
            expected.append((elegy.get_losses()["size_loss"], elegy.get_metrics()["block/average"]))
    assert_same(losses, {"size_loss": sum(loss for loss, _ in expected) / 3})
    assert_same(metrics, {"ensemble/members/average": sum(metric for _, metric in expected) / 3})


def test_inputs_of_their_own():
    ensemble = Ensemble(lambda: Linear(2), 3, in_axes=0, out_axes=1)
    xs = jax.random.normal(jax.random.key(0), [3, 5, 4])
    y = ensemble(xs)
    assert y.shape == (5, 3, 2)
    assert_same(y[:, 1], ensemble[1](xs[1]))


def test_eight_members_train_in_one_step():
    """As eight models trained one by one by optax."""
    target = jnp.sin(X.sum(-1, keepdims=True))
    ensemble = Ensemble(lambda: Linear(1), 8).init(X)
    alone = list(ensemble)
    optimiser = optax.sgd(0.1)

    def step(ensemble, state):
        def loss(ensemble):
            return jnp.mean((ensemble(X) - target[None]) ** 2, axis=(1, 2)).sum()

        (_, ensemble), grads = elegy.value_and_grad(loss)(ensemble)
        updates, state = optimiser.update(grads, state)
        parameters, rest = elegy.partition(ensemble)
        return elegy.combine(optax.apply_updates(parameters, updates), rest), state

    state = optimiser.init(elegy.partition(ensemble)[0])
    step = jax.jit(step)
    for _ in range(3):
        ensemble, state = step(ensemble, state)
        for index, member in enumerate(alone):
            grads = jax.grad(lambda member: jnp.mean((member(X) - target) ** 2))(member)
            alone[index] = jax.tree.map(lambda p, g: p - 0.1 * g, member, grads)
    assert_same(jnp.stack([member.w for member in alone]), ensemble.members.w)


def test_identical_members_are_reported():
    with pytest.warns(
        elegy.errors.IdenticalMembersWarning, match="ensemble/members: the 3 members have the same parameters"
    ):
        Ensemble(lambda: Linear(2, w_init=jnp.zeros), 3)(X)
    linear = Linear(2).init(X)
    with pytest.warns(elegy.errors.IdenticalMembersWarning):
        Ensemble.from_members([linear, linear.copy()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Ensemble(lambda: Linear(2), 3)(X)
        Ensemble(lambda: Linear(2, w_init=jnp.zeros), 1)(X)


# ---------------------------------------------------------------------------------------------------------------------
# Weight tying
# ---------------------------------------------------------------------------------------------------------------------


class Embedding(elegy.Module):
    def __init__(self, size, width):
        self.table = self.add_parameter("table", [size, width], initializer=jax.nn.initializers.normal())

    def call(self, tokens):
        return self.table[tokens]

    def attend(self, x):
        return x @ self.table.T


class Language(elegy.Module):
    """An embedding that is the output projection too, and one block at three depths."""

    def __init__(self):
        self.embedding = Embedding(7, 3)
        self.block = Linear(3)
        self.layers = [self.block, self.block, self.block]

    def call(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return self.embedding.attend(x)


def test_tied_weights_get_the_sum_of_their_gradients():
    tokens = jnp.array([1, 2, 5])
    model = Language().init(tokens)

    def plain(parameters):
        x = parameters["embedding"]["table"][tokens]
        for _ in range(3):
            x = jnp.tanh(x @ parameters["block"]["w"] + parameters["block"]["b"][None])
        return jnp.sum((x @ parameters["embedding"]["table"].T) ** 2)

    assert set(model.get_parameters()) == {"embedding", "block"}
    expected = jax.value_and_grad(plain)(model.get_parameters())
    actual = elegy.jit(elegy.value_and_grad(lambda t: jnp.sum(model(t) ** 2), modules=model), modules=model)(tokens)
    assert_same(actual, expected)
    assert model.layers[0] is model.layers[2] is model.block


# ---------------------------------------------------------------------------------------------------------------------
# Beside other modules, and in parts
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["eager", "init", "elegy.jit", "vmap"])
def test_initial_values_do_not_depend_on_the_neighbours(how):
    class Net(elegy.Module):
        def __init__(self, stacked):
            self.embed = Linear(3)
            self.layers = Stack(Block, 3) if stacked else [Block() for _ in range(3)]
            self.head = Linear(2)

        def call(self, x):
            x = self.embed(x)
            if isinstance(self.layers, list):
                for layer in self.layers:
                    x = layer(x)
            else:
                x = self.layers(x)
            return self.head(x)

    def initialised(stacked):
        net = Net(stacked)
        if how == "vmap":
            return jax.vmap(lambda key: net.copy().init(X, rng=key))(jax.random.key(3)[None]).get_parameters()
        with elegy.rng_context(3):
            {"eager": net, "init": net.init, "elegy.jit": elegy.jit(net)}[how](X)
        return net.get_parameters(trainable=True)

    listed, stack = initialised(False), initialised(True)
    assert_same((stack["embed"], stack["head"]), (listed["embed"], listed["head"]), rtol=0, atol=0)
    axis = 1 if how == "vmap" else 0
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis), *listed["layers"])
    assert_same(stack["layers"]["blocks"], expected, rtol=1e-6)


@pytest.mark.parametrize("transform", ["vmap", "scan"])
def test_two_stacked_modules_of_one_transform_differ(transform):
    class Net(elegy.Module):
        def __init__(self):
            self.query, self.key = Linear(3), Linear(3)

        def call(self, x):
            both = (self.query, self.key)
            if transform == "scan":
                return elegy.scan(lambda x, _: (self.query(x) * self.key(x), None), x, length=4, stacked=both)[0]
            run = elegy.vmap(lambda x: self.query(x) * self.key(x), in_axes=None, axis_size=4, stacked=both)
            return run(x)

    net = Net().init(X, rng=0)
    assert len(np.unique(np.concatenate([net.query.w, net.key.w]).reshape(8, -1), axis=0)) == 8
    other = Net().init(X, rng=0)
    assert_same(other.get_parameters(), net.get_parameters(), rtol=0, atol=0)


def test_parameters_of_constructors_that_run_in_blocks_are_those_of_a_list():
    class Scale(elegy.Module):
        def __init__(self):
            self.w = self.add_parameter("w", [3], initializer=jax.nn.initializers.normal())

        def call(self, x):
            return x * self.w[None]

    class Pair(elegy.Module):
        def call(self, x):
            return Scale()(x) + Scale(name="other")(x) if False else Scale()(x) + Scale()(x)

    listed, stack = Listed(Pair, 3).init(X, rng=0), Stacked(Pair, 3).init(X, rng=0)
    expected = stacked([block.get_parameters() for block in listed.layers])
    assert_same(stack.layers.blocks.get_parameters(), expected, rtol=0, atol=0)
    assert len(np.unique(jax.tree.leaves(expected))) == 18


@pytest.mark.parametrize("make", [Stack, Ensemble])
def test_modules_that_share_are_not_untied_in_silence(make):
    shared = Linear(3)

    class Sharing(elegy.Module):
        def __init__(self):
            self.shared = shared

        def call(self, x):
            return self.shared(x)

    for factory in (Sharing, lambda: shared):
        with pytest.raises(elegy.errors.StructureError, match="linear is in number 0 and in number 1"):
            make(factory, 3)
    assert make(lambda: Sharing().copy(), 3).init(X)


def test_a_part_of_a_stack_is_like_the_stack():
    stack = Stack(Block, 5, remat=True, name="encoder").init(X)
    stack.trainable = False
    for part, numbers in ((stack[1:4], [1, 2, 3]), (stack[::-2], [4, 2, 0]), (stack[-1:], [4])):
        assert part.name == "encoder" and not part.trainable and part.initialized and part.remat
        assert len(part) == len(list(part)) == len(numbers)
        for block, number in zip(part, numbers, strict=True):
            assert_same(block.get_parameters(), stack[number].get_parameters(), rtol=0, atol=0)
    assert len(stack) == 5 and stack.blocks.linear.w.shape == (5, 3, 3)
    with pytest.raises(ValueError, match="the slice is empty"):
        stack[2:2]

    class Deep(Stack):
        def __init__(self, n):
            super().__init__(lambda: Linear(3), n)

    assert type(Deep(4)[:2]) is Deep
    members = Ensemble(lambda: Linear(2), 6).init(X)
    assert_same(members[:2](X), members(X)[:2])
    one = jax.jit(lambda stack, index: stack[index])(stack, 3)
    assert_same(one.get_parameters(), stack[3].get_parameters(), rtol=0, atol=0)


def test_an_eager_stack_is_compiled_once():
    traces = []

    class Counting(elegy.Module):
        def call(self, x, scale, *, flag=False, name="", mask=None):
            traces.append((flag, name))
            x = Linear(3)(x) * scale
            return x if mask is None else jnp.where(mask, x, 0.0)

    stack = Stack(Counting, 4).init(X, 1.0)
    expected = X
    for block in stack:
        expected = block(expected, 0.5)
    traces.clear()
    for _ in range(3):
        assert_same(stack(X, 0.5), expected)
    assert len(traces) == 1
    stack(X, 0.5, flag=True, name="other", mask=X > 0)
    stack(X + 1, 0.5, flag=True, name="other", mask=X < 0)
    assert traces[1:] == [(True, "other")]
    stack.set_parameters(jax.tree.map(jnp.zeros_like, stack.get_parameters()))
    assert not stack(X, 0.5).any() and len(traces) == 2


def test_an_eager_stack_whose_blocks_take_another_module():
    class Attending(elegy.Module):
        def call(self, x, memory):
            return x + memory(x)

    memory = Linear(3).init(X)
    stack = Stack(Attending, 2)
    y = X + memory(X)
    assert_same(stack(X, memory), y + memory(y))


def test_blocks_that_do_not_return_the_like_of_their_input():
    with pytest.raises(elegy.errors.StructureError, match=r"stack: a block .* given float32\[5,3\] .* float32\[5,4\]"):
        Stack(lambda: Linear(4), 2)(X)
    with pytest.raises(elegy.errors.StructureError, match="say outputs=True"):
        Stack(Pair, 2)(X, layer_inputs=jnp.ones(2))
    with pytest.raises(elegy.errors.StructureError, match=r"must return a pair \(x, y\)"):
        Stack(lambda: Linear(3), 2, outputs=True)(X)
    with pytest.raises(TypeError, match=r"carry like the one .* float32\[5,3\] went in, float32\[5,4\] came out"):
        elegy.scan(lambda x, _: (jnp.ones([5, 4]), None), X, length=2)
    with pytest.raises(TypeError, match="carry like the one"):
        elegy.scan(lambda x, _: ((x, x), None), X, length=2)


# ---------------------------------------------------------------------------------------------------------------------
# Named axes, and members that are alike
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [False, True])
def test_members_talk_to_each_other_from_the_first_call_on(inside):
    class Centred(elegy.Module):
        def call(self, x):
            y = Linear(2)(x)
            return y - jax.lax.pmean(y, "members")

    class Net(elegy.Module):
        def call(self, x):
            return Ensemble(Centred, 3, axis_name="members")(x)

    net = Net() if inside else Ensemble(Centred, 3, axis_name="members")
    y = net(X)
    np.testing.assert_allclose(y.sum(0), np.zeros([5, 2]), atol=1e-6)
    ensemble = net.ensemble if inside else net
    outputs = jnp.stack([member.linear(X) for member in ensemble])
    np.testing.assert_allclose(y, outputs - outputs.mean(0)[None], atol=1e-6)
    assert_same(elegy.jit(net)(X), y)


def test_axes_of_inputs_and_outputs_by_name():
    class Takes(elegy.Module):
        def call(self, inputs):
            y = Linear(2)(inputs["own"]) + inputs["shared"]
            return {"first": y, "second": y}

    ensemble = Ensemble(Takes, 3, in_axes=({"own": 0, "shared": None},), out_axes={"first": 0, "second": 1})
    found = ensemble({"own": jnp.ones([3, 4]), "shared": jnp.ones(2)})
    assert found["first"].shape == (3, 2) and found["second"].shape == (2, 3)


@pytest.mark.parametrize("make", [Stack, Ensemble])
def test_a_second_eager_call_compiles_nothing(make):
    module = make(lambda: Linear(3), 3).init(X)
    compilations = []

    def listen(event, *args, **kwargs):
        if "backend_compile" in event:
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    for shift in (0.0, 1.0):
        compilations.clear()
        jax.block_until_ready(module(X + shift))
    assert not compilations
    jax.block_until_ready(jax.jit(lambda x: x + 1)(X))
    assert compilations  # the listener listens
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize(
    "alike",
    [
        lambda: jax.vmap(lambda _: Linear(2).init(X, rng=0))(jnp.arange(3)),
        lambda: jax.vmap(lambda key: Linear(2, w_init=jnp.ones).init(X, rng=key))(
            jax.random.split(jax.random.key(0), 3)
        ),
        lambda: elegy.vmap(m := Linear(2, w_init=jnp.ones), in_axes=None, axis_size=3, stacked=m)(X),
        lambda: Ensemble(lambda: Linear(2, w_init=jnp.ones), 3)(X),
    ],
    ids=["one key", "constant initializers", "elegy.vmap", "Ensemble"],
)
def test_members_that_are_alike_are_reported(alike):
    with pytest.warns(elegy.errors.IdenticalMembersWarning, match="have the same parameters"):
        alike()


def test_members_that_will_differ_are_not_reported():
    class Noisy(elegy.Module):
        def call(self, x):
            return elegy.nn.Dropout(0.5)(Linear(2, w_init=jnp.ones)(x))

    keys = jax.random.split(jax.random.key(0), 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.vmap(lambda key: Linear(2).init(X, rng=key))(keys)
        Ensemble(lambda: Linear(2, w_init=jnp.ones), 3, in_axes=0)(jnp.ones([3, 4]))  # each has data of its own
        Ensemble(Noisy, 3)(X)  # each draws masks of its own
        linear = Linear(2).init(X)
        jax.vmap(lambda x: linear(x))(X)


# ---------------------------------------------------------------------------------------------------------------------
# What blocks close over
# ---------------------------------------------------------------------------------------------------------------------


def unrolled(stack, x, *args):
    for block in stack:
        x = block(x, *args)
    return x


@pytest.mark.parametrize("held", ["closure", "closure of an argument", "an array", "partial"])
def test_an_eager_stack_sees_new_values_of_what_its_blocks_close_over(held):
    projection = Linear(3).init(X)

    class Closes(elegy.Module):
        def call(self, x, project=lambda x: projection(x)):
            return x + project(Linear(3)(x))

    class Calls(elegy.Module):
        def call(self, x, project):
            return x + project(Linear(3)(x))

    args: tuple = ()
    if held == "closure":
        stack = Stack(Closes, 2)
    elif held == "closure of an argument":
        stack, args = Stack(Calls, 2), (lambda x: projection(x),)
    elif held == "an array":
        stack, args = Stack(Calls, 2), (lambda x: x @ projection.w,)
    else:
        stack, args = Stack(Calls, 2), (jax.tree_util.Partial(lambda layer, x: layer(x), projection),)
    for _ in range(3):
        assert_same(stack(X, *args), unrolled(stack, X, *args))
        projection.set_parameters({"w": 3 * projection.w})
    compiled = elegy.jit(stack, modules=projection)
    assert_same(compiled(X, *args) if held == "closure" else stack(X, *args), unrolled(stack, X, *args))


@pytest.mark.parametrize("place", ["an attribute", "a global name"])
def test_an_eager_stack_whose_blocks_hold_functions_of_modules(place):
    global shared_projection
    projection = shared_projection = Linear(3).init(X)

    class Holds(elegy.Module):
        def __init__(self, project):
            self.project = project

        def call(self, x):
            return x + self.project(Linear(3)(x))

    project = (lambda x: projection(x)) if place == "an attribute" else (lambda x: shared_projection(x))
    stack = Stack(lambda: Holds(project), 2)
    for _ in range(2):
        assert_same(stack(X), unrolled(stack, X))
        projection.set_parameters({"w": 3 * projection.w})


# ---------------------------------------------------------------------------------------------------------------------
# Branches that are reached later
# ---------------------------------------------------------------------------------------------------------------------


class Later(elegy.Module):
    """State from the first call on, and a layer that is first called in training."""

    def __init__(self, fault=lambda: None):
        self.norm, self.late, self.fault = elegy.nn.BatchNormalization(), Linear(1), fault

    def call(self, x):
        x = self.norm(x)
        if elegy.training():
            elegy.add_loss("late", self.late(x).mean())
            self.fault()
        return x


def statistics(items):
    return [np.asarray(items.norm.mean), np.asarray(items.norm.var)]


def stack_and_items(fault):
    stack = Stack(lambda: Later(fault), 3)
    return stack, lambda: stack.blocks


def ensemble_and_items(fault):
    ensemble = Ensemble(lambda: Later(fault), 3)
    return ensemble, lambda: ensemble.members


def mapped_and_items(fault):
    keys = jax.random.split(jax.random.key(0), 3)
    with elegy.training_context(False):
        members = jax.vmap(lambda key: Later(fault).init(X, rng=key))(keys)
    return elegy.vmap(members, in_axes=None, axis_size=3, stacked=members), lambda: members


@pytest.mark.filterwarnings("ignore::elegy.errors.IdenticalMembersWarning")
@pytest.mark.parametrize("make", [stack_and_items, ensemble_and_items, mapped_and_items])
def test_an_init_pass_over_a_part_leaves_the_state_of_all_layers(make):
    faults = []

    def fault():
        if faults:
            raise faults.pop()

    run, items = make(fault)
    with elegy.training_context(False):
        run(X)
    state = [value + np.arange(3, dtype=np.float32)[:, None] for value in statistics(items())]
    items().set_parameters({"norm": dict(zip(("mean", "var"), map(jnp.asarray, state), strict=True))})
    faults.append(RuntimeError("in the init pass"))
    with pytest.raises(RuntimeError, match="in the init pass"):
        run(X)
    for value, old in zip(statistics(items()), state, strict=True):
        np.testing.assert_array_equal(value, old)
    run(X)
    decay = items().norm.decay_rate
    assert items().late.w.shape == (3, 3, 1)
    if make is not stack_and_items:  # each member sees the batch itself
        expected = decay * state[0] + (1 - decay) * np.asarray(X.mean(axis=0))[None]
        np.testing.assert_allclose(items().norm.mean, expected, rtol=1e-5)
    assert items().norm.mean.shape == items().norm.var.shape == (3, 3)


def test_an_optimizer_of_stacked_members_is_made_in_the_map():
    members = jax.vmap(lambda key: Linear(5).init(X, rng=key))(jax.random.split(jax.random.key(0), 3))
    optimizer = elegy.Optimizer(optax.sgd(0.1))

    def step(x):
        loss, grads = elegy.value_and_grad(lambda: members(x).sum(), modules=members)()
        optimizer.update(members, grads)
        return loss

    before = members.w
    losses = elegy.vmap(step, in_axes=None, axis_size=3, stacked=[members, optimizer])(X)
    assert losses.shape == (3,) and members.w.shape == (3, 3, 5)
    gradient = np.broadcast_to(np.asarray(X.sum(axis=0))[None, :, None], (3, 3, 5))
    np.testing.assert_allclose(members.w, before - 0.1 * gradient, rtol=1e-4, atol=1e-5)
