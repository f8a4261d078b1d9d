"""Figures of Matplotlib, which is imported when something is drawn."""

from __future__ import annotations

import functools
import io
import typing as tp


def new_figure(who: str, **options: tp.Any) -> tp.Any:
    """A `matplotlib.figure.Figure` that notebooks show.

    **Arguments:**

    - `who`: what draws, for the error.
    - `options`: those of the figure.

    **Raises:** `ImportError` if Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise  # it is there, and lacks something itself
        raise ImportError(f"{who} draws by Matplotlib: pip install matplotlib.", name="matplotlib") from None
    figure = Figure(layout="constrained", **options)
    # Of itself IPython shows those figures alone that pyplot makes, after it was imported.
    figure._repr_png_ = functools.partial(_png, figure)  # type: ignore[attr-defined]
    return figure


def _png(figure: tp.Any) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
