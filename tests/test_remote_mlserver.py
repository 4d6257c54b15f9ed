"""Against MLServer, a program that others wrote: scores, metadata, errors, a server that is paused or killed."""

from __future__ import annotations

import numpy as np
import pytest
from model_servers import mean_model

import retailinfer as ri
from retailinfer import columns as c
from retailinfer.errors import RemoteError, SchemaMismatchError
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


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """The same model as a release: the sigmoid of the mean of four columns."""
    import pyarrow as pa
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["features", "w"], ["mean"]),
            helper.make_node("Sigmoid", ["mean"], ["score"]),
        ],
        "mean",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", 4])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["rows", 1])],
        [numpy_helper.from_array(np.full((4, 1), 0.25, np.float32), "w")],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()
    rows = pa.table({name: np.random.default_rng(i).normal(size=200) for i, name in enumerate("abcd")})
    spec = ri.FeatureSpec(
        request=dict.fromkeys("abcd", float), columns=[c.numeric(name) for name in "abcd"]
    ).fit(rows)
    out = tmp_path_factory.mktemp("mean") / "mean"
    policy = ri.Policy([("approve", 0.0), ("review", 0.5), ("decline", 0.7)])
    ri.pack("mean", model=model, features=spec, policy=policy, golden=rows, out=out)
    return out


@pytest.mark.requires("pyarrow", "onnx", "grpc")
@pytest.mark.parametrize("way", ["http", "grpc"])
def test_service_and_release_agree_before_one_takes_the_others_place(mlserver, release, way):
    """primary="remote" against MLServer: 200 requests and a batch, equal actions, scores within float32's last bits."""
    url = mlserver.url if way == "http" else mlserver.grpc_url
    remote = ri.Remote(url, model="fraud", timeout_ms=5_000)
    scorer = ri.Scorer.load(release, trust="unsigned", remote=remote, primary="remote")
    scorer.check_remote()
    chance = np.random.default_rng(4)
    requests = [dict(zip("abcd", row, strict=True)) for row in chance.normal(0, 2, (300, 4)).tolist()]
    for request in requests[:200]:
        assert scorer.score(request).release == "remote:fraud"
    scorer.score_batch(requests[200:])
    found = scorer.agreement()
    assert (found.answers, found.compared, found.local_answers, found.remote_failures) == (300, 300, 0, {})
    assert found.equal_actions >= 0.99  # a score on a threshold may fall either way
    assert found.largest_difference < 1e-6
    assert found.local_p50_ms < found.remote_p50_ms
    with pytest.raises(SchemaMismatchError):
        remote.check({"features": (np.float32, (None, 5))}, {})
    remote.close()
