"""Against MLServer, a program that others wrote: scores, metadata, errors, a server that is paused or killed."""

from __future__ import annotations

import numpy as np
import pytest
from model_servers import mean_model

from retailinfer.errors import RemoteError
from retailinfer.resilience.remote.endpoint import parse_url

pytestmark = pytest.mark.requires("urllib3")
ROWS = np.array([[0.1, -2.5, 3.0, 1e-7], [4.0, 5.0, -6.0, 0.25]], np.float32)
SCORES = mean_model({"features": ROWS})["score"]


MADE: list = []


@pytest.fixture(autouse=True)
def closed():
    """What a test made is closed when it is over, whatever tracebacks still hold it."""
    yield
    while MADE:
        MADE.pop().close()


def backend(url: str, model: str = "fraud", **settings):
    """A back end over HTTP."""
    from retailinfer.resilience.remote.http import HttpBackend

    MADE.append(HttpBackend(parse_url(url), model=model, **settings))
    return MADE[-1]


def ask(one, timeout_s: float = 5.0):
    """The scores of two rows."""
    return one.infer({"features": ROWS}, ["score"], timeout_s=timeout_s)["score"]


@pytest.mark.parametrize("version", [None, "1", "2"])
def test_http_scores_are_those_of_the_model(mlserver, version):
    """JSON both ways loses not a bit; one connection serves all calls."""
    one = backend(mlserver.url, version=version)
    for _ in range(3):
        np.testing.assert_array_equal(ask(one).view(np.uint32), SCORES.view(np.uint32))
    assert one.connections == 1


def test_http_metadata_is_what_the_model_declares(mlserver):
    """Names, types and shapes."""
    found = backend(mlserver.url).metadata(timeout_s=5)
    assert found.inputs == (("features", "FP32", (-1, 4)),)
    assert found.outputs == (("score", "FP32", (-1, 1)),)


def test_http_errors_are_typed(mlserver):
    """No such model; a score that is NaN, which MLServer writes as null; inputs that it cannot read."""
    for model, kind in (("missing", "rejected"), ("broken", "malformed")):
        with pytest.raises(RemoteError) as caught:
            ask(backend(mlserver.url, model))
        assert caught.value.kind == kind


def test_http_server_that_hangs_dies_and_returns(own_mlserver):
    """Paused: a timeout. Killed: refused. Started again on its port: answers, on a new connection."""
    one = backend(own_mlserver.url)
    ask(one)
    own_mlserver.pause()
    with pytest.raises(RemoteError) as caught:
        ask(one, 0.3)
    assert caught.value.kind == "timeout"
    own_mlserver.resume()
    ask(one)
    own_mlserver.kill()
    with pytest.raises(RemoteError) as caught:
        ask(one)
    assert caught.value.kind in ("connect", "reset")
    own_mlserver.start()
    np.testing.assert_array_equal(ask(one), SCORES)
