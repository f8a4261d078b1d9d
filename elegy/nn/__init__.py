from elegy.nn.linear import Linear as Linear
