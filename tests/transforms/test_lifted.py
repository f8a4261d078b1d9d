"""`vmap`, `scan`, `remat`, `cond`, `switch`, `while_loop` and `fori_loop` against the same computation unrolled.

Each transform is written twice below: lifted, and as what it means in plain Python. Programs nest them in each other,
and must do the same in both forms: outputs, state, losses, metrics, gradients, and initial parameters.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy

SIZE = 3
X = jnp.linspace(-1.0, 1.0, SIZE)


class Cell(elegy.Module):
    """Parameters, state, a module of its own, hooks."""

    def call(self, x):
        mean = self.add_parameter("mean", x.shape, trainable=False)
        self.update_parameter("mean", 0.9 * mean + 0.1 * jax.lax.stop_gradient(x))
        y = jnp.tanh(elegy.nn.Linear(x.shape[-1])(x) + mean)
        elegy.add_loss("size", jnp.sum(y**2))
        elegy.add_metric("average", jnp.mean(y))
        return y


# ---------------------------------------------------------------------------------------------------------------------
# What each transform means
# ---------------------------------------------------------------------------------------------------------------------


def state_of(module):
    return module.get_parameters(trainable=False)


def apart(run):
    """What a function returns and declares, kept from the collections around it."""
    with elegy.hooks_context():
        out = run()
        return out, elegy.get_losses(), elegy.get_metrics()


def declare(losses, metrics):
    for name, value in losses.items():
        elegy.add_loss(name, value)
    for name, value in metrics.items():
        elegy.add_metric(name, value)


def average(trees):
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees)


def summed(trees):
    return jax.tree.map(lambda *leaves: sum(leaves), *trees)


def repeat(bodies, x):
    """Runs functions one after the other, as the iterations of a loop: losses are summed, metrics averaged."""
    losses, metrics = [], []
    for body in bodies:
        x, loss, metric = apart(lambda x=x, body=body: body(x))
        losses.append(loss)
        metrics.append(metric)
    declare(summed(losses), average(metrics))
    return x


def vmap_unrolled(f, x, module):
    if not module.initialized:
        module.init(x)
    before, states, outs, losses, metrics = state_of(module), [], [], [], []
    for lane in (x, 2 * x, -x):
        module.set_parameters(before)
        out, loss, metric = apart(lambda lane=lane: f(lane))
        states.append(state_of(module))
        outs.append(out)
        losses.append(loss)
        metrics.append(metric)
    module.set_parameters(average(states))
    declare(average(losses), average(metrics))
    return sum(outs)


def grad_of(f, x, module):
    """Uses the gradient with respect to the parameters, and the updated state."""
    loss, grads = elegy.value_and_grad(lambda x: jnp.mean(f(x) ** 2), modules=module)(x)
    return x * 0.5 + loss + 0.1 * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(grads))


TIMES = jnp.arange(3.0)

LIFTED = {
    "vmap": lambda f, x, m: elegy.vmap(f, modules=m, reduce_state="mean")(jnp.stack([x, 2 * x, -x])).sum(0),
    "scan": lambda f, x, m: elegy.scan(lambda x, t: (f(x + t), None), x, TIMES, modules=m)[0],
    "remat": lambda f, x, m: elegy.remat(f, modules=m)(x),
    "cond": lambda f, x, m: elegy.cond(x.sum() > 0.2, f, lambda x: f(2 * x), x, modules=m),
    "switch": lambda f, x, m: elegy.switch(
        jnp.asarray(x.sum() > 0.2, jnp.int32) + 1, [lambda x: f(-x), f, lambda x: f(2 * x)], x, modules=m
    ),
    "while_loop": lambda f, x, m: elegy.while_loop(
        lambda carry: carry[0] < 3, lambda carry: (carry[0] + 1, f(carry[1])), (jnp.array(0), x), modules=m
    )[1],
    "fori_loop": lambda f, x, m: elegy.fori_loop(0, 3, lambda i, x: f(x + i.astype(x.dtype)), x, modules=m),
    "jit": lambda f, x, m: elegy.jit(f, modules=m)(x),
    "value_and_grad": grad_of,
}
UNROLLED = {
    "vmap": vmap_unrolled,
    "scan": lambda f, x, m: repeat([lambda x, t=t: f(x + t) for t in TIMES], x),
    "remat": lambda f, x, m: f(x),
    "cond": lambda f, x, m: f(x) if x.sum() > 0.2 else f(2 * x),
    "switch": lambda f, x, m: f(2 * x) if x.sum() > 0.2 else f(x),
    "while_loop": lambda f, x, m: repeat([f] * 3, x),
    "fori_loop": lambda f, x, m: repeat([lambda x, i=i: f(x + float(i)) for i in range(3)], x),
    "jit": lambda f, x, m: f(x),
    "value_and_grad": grad_of,
}


def program(names, forms, module):
    """The transforms `names`, the first outermost, around a call of the module."""

    def nest(names):
        if not names:
            return module
        inner = nest(names[1:])
        return lambda x: forms[names[0]](inner, x, module)

    return nest(names)


def run(names, forms, module, transform=lambda f, module: f):
    if not module.initialized:
        elegy.set_rng(0)
        if forms is UNROLLED and {"cond", "switch"} & {*names}:
            module.init(X)  # an init pass has no values for Python's `if`
    with elegy.hooks_context():
        y = transform(program(names, forms, module), module)(X)
        return y, module.get_parameters(), elegy.get_losses(), elegy.get_metrics()


def assert_same(lifted, unrolled):
    assert jax.tree.structure(lifted) == jax.tree.structure(unrolled)
    for one, other in zip(jax.tree.leaves(lifted), jax.tree.leaves(unrolled), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


def is_possible(names):
    """A while_loop has no gradient in reverse mode."""
    return "while_loop" not in names[names.index("value_and_grad") :] if "value_and_grad" in names else True


# `switch` and `while_loop` share the code of `cond` and `fori_loop`, and meet only what these do not resemble.
ALIKE, RESEMBLED = {"switch", "while_loop"}, {"remat", "cond", "switch", "while_loop", "fori_loop"}
PAIRS = [
    pair
    for pair in itertools.product(LIFTED, repeat=2)
    if is_possible(pair) and not (ALIKE & {*pair} and RESEMBLED >= {*pair})
]


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_a_nesting_does_what_it_does_unrolled(names):
    """From modules that are not initialised: their first call is inside the innermost transform."""
    assert_same(run(names, LIFTED, Cell()), run(names, UNROLLED, Cell()))


STYLES = {
    "elegy.jit": lambda f, module: elegy.jit(f, modules=module),
    "elegy.jit twice": lambda f, module: elegy.jit(elegy.jit(f, modules=module), modules=module),
    "elegy.remat": lambda f, module: elegy.remat(f, modules=module),
}
TRIPLES = [triple for triple in itertools.product(LIFTED, repeat=3) if len(set(triple)) == 3 and is_possible(triple)]


# Each nesting in one of the styles, which take turns.
@pytest.mark.parametrize(("names", "style"), [*zip(TRIPLES[::29], itertools.cycle(STYLES), strict=False)], ids=str)
def test_a_deep_nesting_is_compiled_to_what_it_does_unrolled(names, style):
    assert_same(run(names, LIFTED, Cell(), STYLES[style]), run(names, UNROLLED, Cell()))


@pytest.mark.parametrize("name", LIFTED)
def test_a_second_call_goes_on_from_the_state_of_the_first(name):
    lifted, unrolled = Cell(), Cell()
    for _ in range(2):
        one, other = run([name], LIFTED, lifted), run([name], UNROLLED, unrolled)
    assert_same(one, other)


class Outer(elegy.Module):
    """Runs a transform over a submodule inside `call`."""

    def __init__(self, name):
        self.transform = name
        self.cell = Cell()

    def call(self, x):
        return LIFTED[self.transform](self.cell, x, self.cell)

    def unrolled(self, x):
        return UNROLLED[self.transform](self.cell, x, self.cell)


PLAIN = {
    "eager": lambda m: (m(X), m),
    "elegy.jit": lambda m: (elegy.jit(m)(X), m),
    "jax.jit": lambda m: jax.jit(lambda m, x: (m(x), m))(m, X),
    "apply": lambda m: m.apply(X),
    "jax.vmap": lambda m: jax.tree.map(
        lambda leaf: leaf[1], jax.vmap(lambda m, x: (m(x), m), in_axes=(None, 0))(m, jnp.stack([2 * X, X]))
    ),
    "jax.lax.scan": lambda m: jax.lax.scan(lambda carry, x: ((carry[1](x), carry[1]), None), (X, m), X[None])[0],
    "jax.checkpoint": lambda m: jax.checkpoint(lambda m, x: (m(x), m))(m, X),
}


# Each transform in three of the seven styles, so that each style has three or more of the nine.
@pytest.mark.parametrize(
    ("name", "style"),
    [
        (name, style)
        for number, name in enumerate(LIFTED)
        for turn, style in enumerate(PLAIN)
        if (turn + 3 * number) % 7 < 3
    ],
)
def test_a_transform_inside_call_works_under_the_transforms_of_jax(name, style):
    module = Outer(name).init(X, rng=0)
    y, lifted = PLAIN[style](module.copy())
    assert_same((y, lifted.get_parameters()), (module.unrolled(X), module.get_parameters()))


@pytest.mark.parametrize("name", [name for name in LIFTED if name != "while_loop"])
def test_a_transform_inside_call_is_differentiated(name):
    module = Outer(name).init(X, rng=0)
    lifted = module.copy()

    def loss(parameters, rest):
        return jnp.mean(elegy.combine(parameters, rest)(X) ** 2)

    with pytest.warns(elegy.errors.LostUpdateWarning, match="outer/cell"):
        grads = jax.grad(loss)(*elegy.partition(lifted)).get_parameters(trainable=True)
    in_place = elegy.value_and_grad(lambda x: jnp.mean(lifted(x) ** 2), modules=lifted)
    compiled = elegy.jit(in_place, modules=lifted)(X)
    expected = elegy.value_and_grad(lambda x: jnp.mean(module.unrolled(x) ** 2), modules=module)(X)
    assert_same(grads, expected[1])
    assert_same((compiled, lifted.get_parameters()), (expected, module.get_parameters()))
