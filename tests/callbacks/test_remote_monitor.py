"""`RemoteMonitor`, with a server on this machine."""

import http.server
import json
import math
import threading

import pytest

from elegy.callbacks import LambdaCallback, RemoteMonitor


@pytest.fixture
def server(monkeypatch):
    """A server that keeps what it was sent, and answers with its `status`."""
    monkeypatch.setenv("no_proxy", "*")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.requests.append((self.path, dict(self.headers), body))
            if server.status == 0:
                self.wfile.write(b"no protocol\r\n\r\n")
                return
            self.send_response(server.status)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, format, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests, server.status = [], 200
        server.url = f"http://127.0.0.1:{server.server_port}/logs"
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_what_is_sent(fitted, server):
    spoil = LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(score=math.nan))
    history = fitted(spoil, RemoteMonitor(server.url, headers={"X-Token": "secret"}, timeout=600), epochs=2).history
    assert len(server.requests) == 2
    for epoch, (path, headers, body) in enumerate(server.requests):
        assert (path, headers["Content-Type"], headers["X-Token"]) == ("/logs", "application/json", "secret")
        row = {name: values[epoch] for name, values in history.items()}
        assert json.loads(body) == {"epoch": epoch, **row, "score": None}


def test_a_server_that_refuses(fitted, server):
    server.status = 503
    with pytest.warns(UserWarning, match=f"{server.url} did not take the logs of epoch .: .*503") as caught:
        history = fitted(RemoteMonitor(server.url, timeout=600), epochs=2)
    assert len(caught) == 2 and history.epoch == [0, 1]


@pytest.mark.parametrize(("status", "message"), [(0, "no protocol"), (302, "it redirects to .*/elsewhere")])
def test_a_server_that_does_not_take_them(fitted, server, status, message):
    server.status = status
    with pytest.warns(UserWarning, match=f"did not take the logs of epoch 0: {message}"):
        assert fitted(RemoteMonitor(server.url, timeout=600), epochs=1).epoch == [0]


def test_arguments():
    with pytest.raises(ValueError, match="url must begin with http:// or https://, got 'file:///etc/passwd'"):
        RemoteMonitor("file:///etc/passwd")
