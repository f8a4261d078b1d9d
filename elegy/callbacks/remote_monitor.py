"""`RemoteMonitor`: the logs of each epoch are sent to a server."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping

from elegy.callbacks.callback import Callback, Logs, as_number
from elegy.callbacks.log_files import finite_or_none


class RemoteMonitor(Callback):
    """Sends the logs of each epoch to a server, as JSON in a POST request: `{"epoch": 0, "loss": 0.5}`. What is not
    finite is `null`.

    **Arguments:**

    - `url`: where to send them, by `http` or `https`.
    - `headers`: of the request, besides its `Content-Type`.
    - `timeout`: for how many seconds to wait for an answer. Training waits meanwhile.

    A server that cannot be reached, or refuses, is a warning after each epoch; training goes on.

    **Raises:** `ValueError` for another kind of URL.

    ```python
    import warnings

    import elegy
    import numpy as np

    x = np.linspace(0, 1, 32, dtype=np.float32)[:, None]
    model = elegy.Model(elegy.nn.Linear(1), loss=elegy.losses.MeanSquaredError())
    monitor = elegy.callbacks.RemoteMonitor("http://127.0.0.1:9/training", headers={"Authorization": "Bearer secret"})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, 2 * x, callbacks=[monitor], verbose=0)
    assert "127.0.0.1:9" in str(caught[0].message)  # nobody listens there
    ```
    """

    writes = True

    def __init__(self, url: str, *, headers: Mapping[str, str] | None = None, timeout: float | int = 10.0):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"RemoteMonitor: url must begin with http:// or https://, got {url!r}.")
        self.url = url
        self.headers = {"Content-Type": "application/json", **(headers or {})}
        self.timeout = timeout

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        import http.client
        import urllib.error
        import urllib.request  # seldom used, and a while to import

        row = {"epoch": epoch, **finite_or_none({name: as_number(name, value) for name, value in logs.items()})}
        request = urllib.request.Request(self.url, json.dumps(row).encode(), self.headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                if answer.url != request.full_url:  # a POST that is redirected becomes a GET, which carries nothing
                    raise OSError(f"it redirects to {answer.url}")
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            warnings.warn(f"RemoteMonitor: {self.url} did not take the logs of epoch {epoch}: {error}", stacklevel=2)
