"""The logs of all epochs."""

from __future__ import annotations

import typing as tp
from collections.abc import Mapping, Sequence

import numpy as np

from elegy.callbacks.callback import Callback, Logs, as_number
from elegy.figures import new_figure

_MOST_ROWS = 20  # epochs of a history that are printed


def distinct(values: Mapping[str, tp.Any]) -> dict[str, tp.Any]:
    """What is to be shown: without the only loss where it is the total, which says the same under `loss`."""
    shown = dict(values)
    for total in ("loss", "val_loss"):
        of_validation = total.startswith("val_")
        losses = [
            name
            for name in values
            if name != total and "loss" in name.partition("/")[0] and name.startswith("val_") == of_validation
        ]
        if total in values and len(losses) == 1 and np.array_equal(values[total], values[losses[0]], equal_nan=True):
            del shown[losses[0]]
    return shown


class History(Callback):
    """The logs of all epochs: what `Model.fit` returns.

    **Attributes:**

    - `history`: a list of floats for each name. Where an epoch has no such value, its list has `nan`.
    - `epoch`: the numbers of the epochs, counted from 0.

    ```python
    import elegy
    import numpy as np

    x = np.linspace(0, 1, 32, dtype=np.float32)[:, None]
    model = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError())
    history = model.fit(x, 2 * x, epochs=3, verbose=0)
    assert history.epoch == [0, 1, 2]
    assert len(history.history["loss"]) == 3
    ```
    """

    sees_module = False

    def __init__(self) -> None:
        self.history: dict[str, list[float]] = {}
        self.epoch: list[int] = []

    def __repr__(self) -> str:
        """The first and the last value of each name, on one line."""
        if not self.epoch:
            return "History(no epochs)"
        ends = [f"{name} {values[0]:.4g} -> {values[-1]:.4g}" for name, values in distinct(self.history).items()]
        return f"History({len(self.epoch)} epoch{'s' * (len(self.epoch) > 1)}: {', '.join(ends)})"

    def __str__(self) -> str:
        """A table with a row for each epoch, or for the first and the last ones if there are many."""
        if not self.epoch:
            return repr(self)
        columns = {"epoch": [str(epoch + 1) for epoch in self.epoch]}
        for name, values in distinct(self.history).items():
            columns[name] = [f"{value:.4g}" for value in values]
        if len(self.epoch) > _MOST_ROWS:
            for name, cells in columns.items():
                columns[name] = [*cells[: _MOST_ROWS // 2], "...", *cells[-_MOST_ROWS // 2 :]]
        widths = {name: max(map(len, (name, *cells))) for name, cells in columns.items()}
        rows = [tuple(columns), *zip(*columns.values(), strict=True)]
        return "\n".join("  ".join(map(str.rjust, row, widths.values())) for row in rows)

    def get_state(self) -> dict[str, tp.Any]:
        return {"history": {name: [*values] for name, values in self.history.items()}, "epoch": [*self.epoch]}

    def set_state(self, state: Mapping[str, tp.Any]) -> None:
        self.history = {name: [*values] for name, values in state["history"].items()}
        self.epoch = [*state["epoch"]]

    def plot(self, names: str | Sequence[str] = ()) -> tp.Any:
        """Draws learning curves with Matplotlib: a picture for each name, with training and validation together.

        **Arguments:**

        - `names`: what to draw, by names without `val_`. The default is everything but `learning_rate`.

        **Returns:** a `matplotlib.figure.Figure`, to show or to save: `history.plot().savefig("curves.png")`.

        **Raises:** `ValueError` if the history has no such name, or no epoch.

        ```python
        import elegy
        import numpy as np

        x = np.linspace(0, 1, 32, dtype=np.float32)[:, None]
        model = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError())
        history = model.fit(x, 2 * x, epochs=3, validation_split=0.25, verbose=0)
        figure = history.plot("loss")
        assert [line.get_label() for line in figure.axes[0].lines] == ["training", "validation"]
        ```
        """
        names = [names] if isinstance(names, str) else list(names)
        trained = {name: values for name, values in self.history.items() if not name.startswith("val_")}
        unknown = [name for name in names if name not in trained]
        if unknown or not trained:
            text = f"History.plot: there is no {', '.join(unknown) or 'epoch'}; there is {[*trained]}."
            both = [name.removeprefix("val_") for name in unknown if name in self.history]
            hint = f"\n  Write {both[0]!r}: values of training and validation are drawn together." if both else ""
            raise ValueError(f"{text}{hint}")
        shown = names or [name for name in distinct(trained) if name != "learning_rate"]
        figure = new_figure("History.plot", figsize=(5.0 * len(shown), 4.0))
        for place, name in enumerate(shown):
            axes = figure.add_subplot(1, len(shown), place + 1, xlabel="epoch", ylabel=name)
            epochs = np.asarray(self.epoch) + 1
            for prefix, label in (("", "training"), ("val_", "validation")):
                values = np.asarray(self.history.get(prefix + name, []))
                if values.size:
                    there = ~np.isnan(values)  # epochs without validation
                    axes.plot(epochs[there], values[there], marker=".", label=label)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.legend()
        return figure

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        for name in {**self.history, **logs}:
            before = [float("nan")] * len(self.epoch)
            self.history.setdefault(name, before).append(as_number(name, logs.get(name, float("nan"))))
        self.epoch.append(epoch)
