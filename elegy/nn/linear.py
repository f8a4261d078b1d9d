import jax, jax.numpy as jnp
from elegy.module import Module
class Linear(Module):
    def __init__(self, output_size, with_bias=True, w_init=None, b_init=None, **kw):
        super().__init__(**kw)
        self.output_size=output_size
    def call(self, x):
        w = self.add_parameter("w", [x.shape[-1], self.output_size], initializer=jax.nn.initializers.lecun_normal())
        b = self.add_parameter("b", [self.output_size])
        return x @ w + b
