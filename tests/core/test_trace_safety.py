"""Inside a raw `jax` transform a module of the outside can be read, and is never changed in silence."""

import functools
import gc
import re
import warnings
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy
from elegy.errors import LostUpdateWarning, TraceError

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(autouse=True)
def plain_tracebacks() -> Iterator[None]:
    """JAX looks at each frame of each traceback to hide its own, which is most of the cost of these tests."""
    before = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")
    yield
    jax.config.update("jax_traceback_filtering", before)


class Linear(elegy.Module):
    def __init__(self, size, name=None):
        super().__init__(name=name)
        self.size = size

    def call(self, x):
        return x @ self.add_parameter("w", [x.shape[-1], self.size], initializer=jax.nn.initializers.normal())


class Norm(elegy.Module):
    """A batch normalisation in all that matters here: in training its state moves."""

    def call(self, x):
        mean = self.add_parameter("mean", [x.shape[-1]], trainable=False)
        if elegy.training():
            self.update_parameter("mean", 0.9 * mean + 0.1 * jnp.mean(x, axis=0))
        return x - mean[None]


class Weighted(Norm):
    def call(self, x):
        return super().call(x) * self.add_parameter("scale", [], initializer=jnp.ones)


class Noise(elegy.Module):
    def call(self, x):
        return x + jax.random.normal(elegy.next_rng_key(), x.shape)


class Net(elegy.Module):
    """What is tried is what the submodule `part` does, so that paths have more than one level."""

    def __init__(self, part):
        self.part = part

    def call(self, x):
        return self.part(x)


def part(call):
    """A class `Part` with this `call`."""

    class Part(elegy.Module):
        pass

    Part.call = call
    return Part()


def adds_loss(self, x):
    elegy.add_loss("size", jnp.sum(x))
    return x


def adds_metric(self, x):
    elegy.add_metric("size", jnp.sum(x))
    return x


def adds_summary(self, x):
    elegy.add_summary("size", x)
    return x


def creates_lazily(self, x):
    return Linear(2)(x)


# What is tried: a function that makes the module (initialised already or not), what is done with it in the transform,
# and what the message must name beside the path.
HOOKS = {
    "add_loss": (lambda: Net(part(adds_loss)).init(X), lambda net, x: net(x), "add_loss"),
    "add_metric": (lambda: Net(part(adds_metric)).init(X), lambda net, x: net(x), "add_metric"),
    "add_summary": (lambda: Net(part(adds_summary)).init(X), lambda net, x: net(x), "add_summary"),
    "next_rng_key": (lambda: Net(Noise(name="part")).init(X), lambda net, x: net(x), "next_rng_key"),
    "update_parameter": (lambda: Net(Norm()).init(X), lambda net, x: net(x), "mean"),
    "first call": (lambda: Net(Linear(2, name="part")), lambda net, x: net(x), "created"),
    "first call, submodule": (lambda: Net(Linear(2, name="part")), lambda net, x: net.part(x), "created"),
    "init": (lambda: Net(Linear(2, name="part")), lambda net, x: net.init(x)(x), "created"),
    "init with a key": (lambda: Net(Linear(2, name="part")), lambda net, x: net.init(x, rng=3)(x), "created"),
    "module constructed in call": (lambda: Net(part(creates_lazily)), lambda net, x: net(x), "created"),
    "set_parameters": (
        lambda: Net(Linear(2, name="part")).init(X),
        lambda net, x: net.set_parameters({"part": {"w": jnp.sum(x) * jnp.ones([3, 2])}}),
        "set",
    ),
    "set_parameters of a submodule": (
        lambda: Net(Linear(2, name="part")).init(X),
        lambda net, x: net.part.set_parameters({"w": jnp.sum(x) * jnp.ones([3, 2])}),
        "set",
    ),
    "update_parameter from outside": (
        lambda: Net(Linear(2, name="part")).init(X),
        lambda net, x: net.part.update_parameter("w", jnp.sum(x) * jnp.ones([3, 2])),
        "updated",
    ),
    "trainable=": (
        lambda: Net(Linear(2, name="part")).init(X),
        lambda net, x: setattr(net, "trainable", False),
        "trainable",
    ),
    "reset": (lambda: Net(Linear(2, name="part")).init(X), lambda net, x: net.reset(), "reset"),
    "elegy.jit": (
        lambda: Net(Norm()).init(X),
        lambda net, x: elegy.jit(net)(x),
        "elegy",
    ),
    "elegy.value_and_grad": (
        lambda: Net(Weighted()).init(X),
        lambda net, x: elegy.value_and_grad(lambda x: net(x).sum(), modules=net)(x),
        "elegy",
    ),
}


def anything(result, x):
    """A scalar made of whatever the tried function gave, so that each transform accepts it."""
    return jnp.sum(x) + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(result))


# Each runs `f(x)`, x being an array of the transform.
TRANSFORMS = {
    "jax.jit": lambda f: jax.jit(f)(X),
    "jax.vmap": lambda f: jax.vmap(f)(jnp.stack([X, X])),
    "jax.grad": lambda f: jax.grad(f)(X),
    "jax.value_and_grad": lambda f: jax.value_and_grad(f)(X),
    "jax.jvp": lambda f: jax.jvp(f, (X,), (X,)),
    "jax.vjp": lambda f: jax.vjp(f, X),
    "jax.linearize": lambda f: jax.linearize(f, X),
    "jax.lax.scan": lambda f: jax.lax.scan(lambda carry, x: (carry, f(x)), 0.0, jnp.stack([X, X])),
    "jax.lax.map": lambda f: jax.lax.map(f, jnp.stack([X, X])),
    "jax.lax.cond": lambda f: jax.lax.cond(jnp.asarray(True), f, jnp.sum, jnp.asarray(X)),
    "jax.lax.while_loop": lambda f: jax.lax.while_loop(
        lambda s: s[0] < 2, lambda s: (s[0] + 1, f(X)), (0, jnp.float32(0))
    ),
    "jax.lax.fori_loop": lambda f: jax.lax.fori_loop(0, 2, lambda i, s: f(X), jnp.float32(0)),
    "jax.checkpoint": lambda f: jax.checkpoint(f)(X),
    "jax.eval_shape": lambda f: jax.eval_shape(f, X),
    "jax.make_jaxpr": lambda f: jax.make_jaxpr(f)(X),
    "jax.jit of jax.custom_vjp": lambda f: jax.jit(with_custom_vjp(f))(X),
    "jax.grad of jax.checkpoint": lambda f: jax.grad(jax.checkpoint(f))(X),
    "jax.vmap of jax.grad": lambda f: jax.vmap(jax.grad(f))(jnp.stack([X, X])),
    "jax.jit of jax.vmap": lambda f: jax.jit(jax.vmap(f))(jnp.stack([X, X])),
}

MAIN = ["jax.jit", "jax.vmap", "jax.grad", "jax.lax.scan", "jax.checkpoint", "jax.eval_shape"]


def with_custom_vjp(f):
    wrapped = jax.custom_vjp(f)
    wrapped.defvjp(lambda x: (f(x), None), lambda _, g: (g * jnp.ones_like(X),))
    return wrapped


def picture(net):
    return (
        jax.tree.structure(net),
        jax.tree.leaves(net),
        net.initialized,
        net.part.initialized,
        net.trainable,
        sorted(vars(net)),
        sorted(vars(net.part)),
        elegy.get_rng().snapshot()[0].tolist(),
        elegy.get_rng().snapshot()[2],
        dict(elegy.get_losses()),
        dict(elegy.get_metrics()),
        list(elegy.get_summaries()),
        elegy.get_static_context(),
    )


def same_picture(a, b):
    return all(
        (len(one) == len(other) and all(x is y for x, y in zip(one, other, strict=True)))
        if index == 1
        else one == other
        for index, (one, other) in enumerate(zip(a, b, strict=True))
    )


def assert_refused(run, net, names, path="net"):
    before = picture(net)
    with pytest.raises(TraceError) as caught:
        run()
    message = str(caught.value)
    assert names in message, message
    assert path in message, f"no path in: {message}"
    # Both ways out: through the arguments, and through the transform of Elegy.
    assert "argument" in message or "inside the transformed function" in message, message
    assert "elegy" in message and re.search("transform of the same name|elegy.jit", message), message
    assert same_picture(before, picture(net)), "something was left behind"


def path_for(hook):
    """What the user can know: a submodule that is used by itself has no path but its name."""
    if hook in ("first call, submodule", "set_parameters of a submodule", "update_parameter from outside"):
        return "part"
    if hook in ("first call", "init", "init with a key", "trainable=", "reset", "elegy.jit", "elegy.value_and_grad"):
        return "net"
    return "net" if hook == "module constructed in call" else "net/part"


FULL = ["add_loss", "update_parameter", "next_rng_key", "first call"]


@pytest.mark.parametrize(
    ("hook", "transform"),
    [(hook, transform) for hook in HOOKS for transform in (TRANSFORMS if hook in FULL else MAIN)],
)
def test_an_outer_module_is_not_changed_inside_a_raw_transform(hook, transform):
    make, use, names = HOOKS[hook]
    net = make()
    with elegy.hooks_context(summaries=True):
        assert_refused(lambda: TRANSFORMS[transform](lambda x: anything(use(net, x), x)), net, names, path_for(hook))
        use(net, X)  # outside it is not refused


@pytest.mark.slow
@pytest.mark.parametrize("transform", MAIN)
@pytest.mark.parametrize("hook", HOOKS)
def test_a_raw_transform_inside_a_function_of_elegy_jit(hook, transform):
    make, use, names = HOOKS[hook]
    net = make()

    def function(x):
        TRANSFORMS[transform](lambda inner: anything(use(net, inner), inner))
        return x

    with elegy.hooks_context(summaries=True):
        assert_refused(lambda: elegy.jit(function, modules=net)(X), net, names, path_for(hook))


@pytest.mark.parametrize("transform", MAIN)
def test_a_raw_transform_inside_a_function_of_value_and_grad(transform):
    net = Net(Norm()).init(X)

    def loss(x):
        TRANSFORMS[transform](lambda inner: anything(net(inner), inner))
        return jnp.sum(x)

    net_with_weights = Net(Linear(2)).init(X)
    with elegy.hooks_context(summaries=True):
        assert_refused(lambda: elegy.value_and_grad(loss, modules=(net, net_with_weights))(X), net, "mean")


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_reading_through_a_closure_works(transform):
    net = Net(Linear(2)).init(X)
    norm = Net(Norm()).init(X)
    seen = []

    def read(x):
        with elegy.training_context(False):
            y = norm(net(x) @ jnp.ones([2, 3]))
        seen.append(net.part.w.shape)
        assert net.get_parameters()["part"]["w"] is net.part.w
        assert len(jax.tree.leaves(net)) == 1
        repr(net)
        return jnp.sum(y) + jnp.sum(net.part.w)

    before = net.part.w
    TRANSFORMS[transform](read)
    elegy.jit(lambda x: [TRANSFORMS[transform](read), x][1])(X)
    assert seen and net.part.w is before
    expected = float(read(X))
    np.testing.assert_allclose(jax.jit(read)(X), expected, rtol=1e-5)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_without_a_collecting_context_the_collecting_hooks_do_nothing(transform):
    for call in (adds_loss, adds_metric, adds_summary):
        net = Net(part(call)).init(X)
        TRANSFORMS[transform](lambda x, net=net: anything(net(x), x))
    with elegy.hooks_context():  # summaries are not wanted here
        TRANSFORMS[transform](lambda x: anything(net(x), x))


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_pure_call_of_an_outer_module_works(transform):
    """`apply` works on a copy, which belongs to the inner trace."""
    net = Net(Norm()).init(X)
    TRANSFORMS[transform](lambda x: anything(net.apply(x), x))
    assert float(jnp.sum(jnp.abs(net.part.mean))) == 0

    noise = Net(Noise(name="part"))
    TRANSFORMS[transform](lambda x: anything(noise.apply(x, rng=jax.random.key(1))[0], x))
    assert not noise.initialized


@pytest.mark.parametrize("transform", MAIN)
def test_a_context_of_its_own_inside_the_transform_works(transform):
    net = Net(part(adds_loss)).init(X)

    def inside(x):
        with elegy.hooks_context(summaries=True), elegy.rng_context(3):
            net(x)
            elegy.add_loss("more", jnp.sum(jax.random.normal(elegy.next_rng_key(), x.shape)))
            return sum(elegy.get_losses().values())

    with elegy.hooks_context(summaries=True):
        TRANSFORMS[transform](inside)
        assert not elegy.get_losses() and not elegy.get_summaries()


@pytest.mark.parametrize("transform", MAIN)
def test_a_module_made_inside_the_transform_works(transform):
    def inside(x):
        net = Net(Norm())
        with elegy.rng_context(3):
            return anything(net(x), x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LostUpdateWarning)
        TRANSFORMS[transform](inside)
        gc.collect()


@pytest.mark.parametrize("draw", [elegy.next_rng_key, lambda: elegy.get_rng()()], ids=["next_rng_key", "RNG"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_key_of_an_outer_stream_is_not_drawn_inside(transform, draw):
    before = elegy.get_rng().snapshot()[0].tolist()
    with pytest.raises(TraceError, match="(?s)key.*elegy"):
        TRANSFORMS[transform](lambda x: anything(jax.random.normal(draw(), x.shape), x))
    assert elegy.get_rng().snapshot()[0].tolist() == before


def test_a_parameter_made_in_a_constructor_inside_needs_a_key_of_its_own():
    class Eager(elegy.Module):
        def __init__(self):
            self.w = self.add_parameter("w", [3], initializer=jax.nn.initializers.normal())

    with pytest.raises(TraceError, match="Eager"):
        jax.jit(lambda x: Eager().w + x)(jnp.ones(3))

    @jax.jit
    def inside(key):
        with elegy.rng_context(key):
            return Eager().w

    assert inside(jax.random.key(0)).shape == (3,)


def test_an_argument_of_an_outer_transform_is_an_outer_module_of_an_inner_one():
    norm = Norm().init(X)

    def outer(norm, x):
        return jax.vmap(lambda row: norm(row[None]))(x), norm

    with pytest.raises(TraceError, match="norm"):
        jax.jit(outer)(norm, X)
    copied = jax.jit(lambda norm, x: jax.vmap(lambda row: norm.copy().apply(row[None]))(x)[0])
    assert copied(norm, X).shape == (2, 1, 3)


def test_the_two_ways_out_of_the_message_work():
    net = Net(Norm(name="part")).init(X)
    y, updated = jax.jit(lambda m, x: (m(x), m))(net, X)
    elegy.jit(lambda x: net(x), modules=net)(X)
    np.testing.assert_array_equal(updated.part.mean, net.part.mean)


# ---------------------------------------------------------------------------------------------------------------------
# Updates that nobody returns
# ---------------------------------------------------------------------------------------------------------------------


def warned(run):
    """The LostUpdateWarnings of a run."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
        gc.collect()
    assert all(issubclass(one.category, LostUpdateWarning) for one in caught), [str(one.message) for one in caught]
    return [str(one.message) for one in caught]


class Deep(elegy.Module):
    def __init__(self):
        self.layers = [Linear(3), Norm(name="norm")]

    def call(self, x):
        for layer in self.layers:
            x = layer(x)
        return Norm(name="last")(x)


# Each takes a function of a module and gives what runs it in a transform, on a copy of the module.
DROPPING = {
    "jax.jit": lambda f, m: jax.jit(f)(m, X),
    "jax.vmap": lambda f, m: jax.vmap(f, in_axes=(None, 0))(m, jnp.stack([X, X])),
    "jax.grad": lambda f, m: jax.grad(lambda p, r: jnp.sum(f(elegy.combine(p, r), X)))(*elegy.partition(m)),
    "jax.checkpoint": lambda f, m: jax.checkpoint(f)(m, X),
    "jax.lax.scan": lambda f, m: jax.lax.scan(
        lambda _, step: (None, f(*step)), None, jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), (m, X))
    ),
    "elegy.jit, pure": lambda f, m: elegy.jit(f)(m, X),
}


@pytest.mark.parametrize("transform", DROPPING)
def test_a_dropped_update_warns_with_its_path(transform):
    model = Deep().init(X)
    messages = warned(lambda: DROPPING[transform](lambda m, x: m(x), model))
    assert any("deep/layers/1" in message and "mean" in message for message in messages), messages
    assert any("deep/last" in message and "mean" in message for message in messages), messages
    assert all("return" in message.lower() and "elegy" in message for message in messages)
    assert float(jnp.sum(jnp.abs(model.last.mean))) == 0


def test_a_dropped_update_warns_once_for_each_trace_and_module():
    model = Deep().init(X)
    dropping = jax.jit(lambda m, x: m(x))
    assert len(warned(lambda: dropping(model, X))) == 2
    assert warned(lambda: dropping(model, X)) == []  # compiled already


def test_a_dropped_key_of_its_own_warns():
    model = Net(Noise(name="part")).init(X)
    messages = warned(lambda: jax.jit(lambda m, x: m(x))(model, X))
    assert len(messages) == 1 and "net/part" in messages[0]


def test_a_dropped_set_parameters_warns():
    model = Net(Linear(2)).init(X)

    def drops(model, x):
        model.set_parameters({"part": {"w": model.part.w * 2}})
        return x

    messages = warned(lambda: jax.jit(drops)(model, X))
    assert len(messages) == 1 and "net/part" in messages[0] and "w" in messages[0]


@pytest.mark.parametrize(
    "returning",
    [
        lambda m, x: (m(x), m),
        lambda m, x: (m(x), {"model": [m]}),
        lambda m, x: (m(x), elegy.partition(m)),
        lambda m, x: (m(x), jax.tree.leaves(m)),
        lambda m, x: (m(x), m.layers, m.last),
        lambda m, x: m.apply(x),
        lambda m, x: jax.jit(lambda m, x: (m(x), m))(m, x),
    ],
    ids=["module", "container", "partition", "leaves", "submodules", "apply", "nested"],
)
def test_a_returned_update_does_not_warn(returning):
    model = Deep().init(X)
    assert warned(lambda: jax.jit(returning)(model, X)) == []
    assert warned(lambda: elegy.jit(returning)(model, X)) == []
    assert warned(lambda: jax.eval_shape(returning, model, X)) == []


def test_half_a_returned_module_warns_about_the_other_half():
    model = Deep().init(X)
    messages = warned(lambda: jax.jit(lambda m, x: (m(x), m.last))(model, X))
    assert len(messages) == 1 and "deep/layers/1" in messages[0]


def test_an_update_after_the_module_was_flattened_warns():
    model = Deep().init(X)

    def drops(m, x):
        before = jax.tree.leaves(m)
        return m(x), before

    assert len(warned(lambda: jax.jit(drops)(model, X))) == 2

    def drops_the_second(m, x):
        y = m(x)
        saved = jax.tree.leaves(m)
        return m(y), saved

    assert len(warned(lambda: jax.jit(drops_the_second)(model, X))) == 2


def test_nothing_is_lost_in_evaluation_outside_or_in_the_shim():
    model = Deep()
    assert warned(lambda: model(X)) == []
    assert warned(lambda: elegy.jit(model)(X)) == []
    assert warned(lambda: elegy.value_and_grad(lambda x: model(x).sum(), modules=model)(X)) == []
    assert warned(lambda: model.apply(X)) == []
    assert warned(lambda: jax.vmap(lambda k: Deep().init(X, rng=k))(jax.random.split(jax.random.key(0), 2))) == []
    with elegy.training_context(False):
        assert warned(lambda: jax.jit(lambda m, x: m(x))(model, X)) == []


def test_an_update_that_was_taken_back_is_not_lost():
    class Fails(elegy.Module):
        def __init__(self):
            self.norm = Norm()

        def call(self, x, fail=False):
            y = self.norm(x)
            if fail:
                raise RuntimeError("as asked")
            return y

    model = Fails().init(X)

    def fails(m, x):
        return m(x, fail=True)

    def run():
        with pytest.raises(RuntimeError, match="as asked"):
            jax.jit(fails)(model, X)

    assert warned(run) == []

    def caught(m, x):
        try:
            m(x, fail=True)
        except RuntimeError:
            pass
        return x

    assert warned(lambda: jax.jit(caught)(model, X)) == []


def test_an_update_of_a_module_made_inside_is_not_lost_by_its_init_pass():
    def inside(x):
        with elegy.rng_context(3):
            return Norm().init(x)(x), None

    messages = warned(lambda: jax.jit(inside)(X))
    assert len(messages) <= 1  # the update of the real call, and nothing of the init pass


# ---------------------------------------------------------------------------------------------------------------------
# Transforms of Elegy inside those of JAX
# ---------------------------------------------------------------------------------------------------------------------

WITHIN = {
    "elegy.jit": lambda net: elegy.jit(net),
    "elegy.remat": lambda net: elegy.remat(net),
    "elegy.vmap": lambda net: lambda x: elegy.vmap(net, reduce_state="mean")(x[None])[0],
    "elegy.scan": lambda net: lambda x: elegy.scan(lambda c, x: (c, net(x)), 0, x[None], modules=net)[1][0],
    "elegy.cond": lambda net: lambda x: elegy.cond(True, net, net, x),
    "elegy.value_and_grad": lambda net: (
        lambda x: elegy.value_and_grad(lambda x: (jnp.sum(y := net(x)), y), modules=net)(x)[0][1]
    ),
    "elegy.jit, nested arguments": lambda net: (
        lambda x: elegy.jit(lambda inputs: net(inputs["x"]), modules=net)({"x": x})
    ),
}
AROUND = {
    "jax.vmap": lambda f, xs: jax.vmap(f)(xs),
    "jax.grad": lambda f, xs: jax.grad(lambda x: jnp.sum(f(x)))(xs[0]),
    "jax.jit": lambda f, xs: jax.jit(f)(xs[0]),
    "jax.lax.scan": lambda f, xs: jax.lax.scan(lambda c, x: (c, f(x)), 0, xs),
    "jax.checkpoint": lambda f, xs: jax.checkpoint(f)(xs[0]),
}


@pytest.mark.parametrize(
    ("part", "within", "around"),
    [(Norm, within, around) for within in WITHIN for around in AROUND]
    + [
        (Noise, within, around)
        for within in WITHIN
        if within != "elegy.value_and_grad"  # has nothing to differentiate
        for around in ("jax.vmap", "jax.jit")
    ],
)
def test_no_transform_of_elegy_leads_around_the_rule(part, within, around):
    """A value that does not depend on the lane is no tracer under jax.vmap; it belongs to the lanes all the same."""
    net = Net(part()).init(X)
    if part is Norm and within == "elegy.value_and_grad":
        net = Net(Weighted()).init(X)
    before, key = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(net)], elegy.get_rng().key
    with pytest.raises(TraceError):
        AROUND[around](WITHIN[within](net), jnp.stack([X, X]))
    assert [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(net)] == before
    assert jax.random.key_data(elegy.get_rng().key).tolist() == jax.random.key_data(key).tolist()
    with elegy.training_context(False):
        if part is Norm:
            AROUND[around](WITHIN[within](net), jnp.stack([X, X]))  # only reads


@pytest.mark.parametrize("within", ["elegy.scan", "elegy.remat", "elegy.cond", "elegy.jit"])
def test_lanes_of_jax_vmap_do_not_draw_from_one_key_through_a_transform(within):
    net = Net(Noise()).init(X)
    run = jax.vmap(lambda net, x: (WITHIN[within](net)(x), net), in_axes=(None, 0), out_axes=(0, None))
    with pytest.raises(TraceError, match=r"in each lane of a jax\.vmap.*\n.*apply\(x, rng=key\)"):
        run(net, jnp.stack([X, X]))


@pytest.mark.parametrize("transform", ["jax.vmap", "elegy.vmap"])
def test_a_parameter_of_a_copy_inside_a_transform_is_not_created(transform):
    vmap = {"jax.vmap": jax.vmap, "elegy.vmap": elegy.vmap}[transform]

    class Copies(elegy.Module):
        def __init__(self):
            self.linear = Linear(2)

        def call(self, x):
            return vmap(lambda module, x: module(x[None])[0], in_axes=(None, 0))(self.linear, x)

    module = Copies()
    with pytest.raises(TraceError, match="copies"):
        module(X)
    assert not module.initialized and not jax.tree.leaves(module)
    module.linear.init(X)
    np.testing.assert_allclose(module(X), module.linear(X), rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Warnings that are due, and warnings that are not
# ---------------------------------------------------------------------------------------------------------------------


def warnings_of(function):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            function()
        except ZeroDivisionError:
            pass
        gc.collect()
    return [warning for warning in caught if issubclass(warning.category, LostUpdateWarning)]


def test_no_warning_where_nothing_is_lost():
    norm = Norm().init(X)
    assert not warnings_of(lambda: jax.jit(lambda m, x: (m(x), 1 / 0))(norm, X))  # an exception
    assert not warnings_of(lambda: jax.jit(lambda m, x: (m(x), m.get_parameters(trainable=False)))(norm, X))
    assert not warnings_of(lambda: jax.jit(lambda m, x: (m(x), m.get_parameters()))(norm, X))
    assert warnings_of(lambda: jax.jit(lambda m, x: (m(x), m.get_parameters(trainable=True)))(norm, X))


@pytest.mark.parametrize("within", [name for name in WITHIN if name != "elegy.value_and_grad"])
def test_a_lost_update_is_told_at_once_with_the_line_that_made_it(within):
    """No circle of references keeps the module alive."""
    net = Net(Norm()).init(X)
    gc.disable()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            jax.jit(lambda net, x: WITHIN[within](net)(x))(net, X)
    finally:
        gc.enable()
    assert len(caught) == 1 and caught[0].category is LostUpdateWarning
    assert "net/part" in str(caught[0].message) and f"({__file__}:" in str(caught[0].message)
    assert caught[0].filename == __file__


# ---------------------------------------------------------------------------------------------------------------------
# A module as the function of a transform
# ---------------------------------------------------------------------------------------------------------------------


class Scale(elegy.Module):
    """Takes what any of the transforms gives: the last argument is scaled."""

    def __init__(self):
        self.w = self.add_parameter("w", initializer=2 * jnp.ones(3))

    def call(self, *args):
        return args[-1] * self.w


class Step(Scale):
    def call(self, carry, x):
        return carry * self.w, x


V = jnp.ones(3)
BY_IDENTITY = {
    "jit": lambda m: jax.jit(m)(V),
    "checkpoint": lambda m: jax.checkpoint(m)(V),
    "cond": lambda m: jax.lax.cond(V.sum() > 0, m, m, V),
    "switch": lambda m: jax.lax.switch(jnp.array(1), [m, m], V),
    "fori_loop": lambda m: jax.lax.fori_loop(0, 3, m, V),
    "while_loop": lambda m: jax.lax.while_loop(lambda c: c.sum() < 5, m, V),
    "scan": lambda m: jax.lax.scan(m, V, jnp.ones((2, 3))),
}
ANEW = {
    "partial in jit": (lambda m: jax.jit(functools.partial(m))(V), V),
    "lambda in jit": (lambda m: jax.jit(lambda x: m(x))(V), V),
    "lambda in cond": (lambda m: jax.lax.cond(V.sum() > 0, lambda x: m(x), lambda x: x, V), V),
    "argument of jit": (lambda m: jax.jit(lambda m, x: m(x))(m, V), V),
    "vmap": (lambda m: jax.vmap(m)(jnp.ones((2, 3))), jnp.ones((2, 3))),
    "vmap in jit": (lambda m: jax.jit(lambda x: jax.vmap(m)(x))(jnp.ones((2, 3))), jnp.ones((2, 3))),
    "map": (lambda m: jax.lax.map(m, jnp.ones((2, 3))), jnp.ones((2, 3))),
    "jacfwd": (lambda m: jax.jacfwd(m)(V), jnp.eye(3)),
    "jacrev": (lambda m: jax.jacrev(m)(V), jnp.eye(3)),
    "jvp": (lambda m: jax.jvp(m, (V,), (V,))[1], V),
    "vjp": (lambda m: jax.vjp(m, V)[1](V)[0], V),
    "linearize": (lambda m: jax.linearize(m, V)[1](V), V),
    "elegy.jit": (lambda m: elegy.jit(m)(V), V),
    "elegy.remat": (lambda m: elegy.remat(m)(V), V),
    "elegy.cond": (lambda m: elegy.cond(V.sum() > 0, m, m, V), V),
}


class Outer(elegy.Module):
    """Gives the module that it holds to a stock transform, which keeps its trace by the identity of that module."""

    def __init__(self, name):
        self.inner, self.name = Step() if name == "scan" else Scale(), name

    def call(self):
        return jax.tree.leaves(BY_IDENTITY[self.name](self.inner))[0]


@pytest.mark.parametrize("name", BY_IDENTITY)
def test_a_module_as_the_function_of_a_stock_transform_has_its_arrays_of_today(name):
    outer = Outer(name)
    step = elegy.jit(lambda: elegy.value_and_grad(lambda: outer().sum(), modules=outer)(), modules=outer)
    power = {"fori_loop": 3, "scan": 2}.get(name, 1)
    differentiable = name != "while_loop"
    for w in (2.0, 5.0):
        outer.set_parameters({"inner": {"w": jnp.full(3, w)}})
        np.testing.assert_allclose(outer(), jnp.full(3, w**power))
        if differentiable:
            value, grads = step()
            np.testing.assert_allclose(value, 3 * w**power)
            np.testing.assert_allclose(grads["inner"]["w"], jnp.full(3, power * w ** (power - 1)))


def test_looking_at_a_module_is_free():
    """Of a function that was only looked at nothing is known: it is no mistake, now or later."""
    module = Scale()
    assert jax.eval_shape(module, V).shape == (3,)
    assert jax.make_jaxpr(module)(V).out_avals[0].shape == (3,)
    assert "stablehlo" in jax.jit(module).lower(V).as_text() or "mhlo" in jax.jit(module).lower(V).as_text()
    function = lambda x: module(x)  # noqa: E731
    jax.eval_shape(function, V)
    module.set_parameters({"w": 3 * jnp.ones(3)})
    np.testing.assert_allclose(module(V), 3 * V)


@pytest.mark.parametrize("name", ANEW)
def test_a_module_in_a_function_made_anew_has_its_arrays_of_today(name):
    run, unscaled = ANEW[name]
    module = Scale()
    for factor in (2.0, 5.0):
        module.set_parameters({"w": jnp.full(3, factor)})
        np.testing.assert_allclose(run(module), factor * unscaled)
