"""The demo's replay and report: every request answered and timed once, promises told as they are, a page of its own."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="`pyarrow` is not installed (pip install retailinfer[test])")

from retailinfer.demo import replay
from retailinfer.demo.fraud import FraudQuality
from retailinfer.demo.metrics import Interval
from retailinfer.demo.recommend import RankingQuality
from retailinfer.demo.report import (
    Declined,
    FraudResult,
    RecommendResult,
    Results,
    html_page,
    terminal_summary,
)


def some_replay(n=400, rows=1, seed=0, *, run_ns=15_000, beside_ns=None):
    """Times such as a replay gives."""
    rng = np.random.default_rng(seed)
    stages = (np.array([1_200, 600, 500, run_ns, 400, 300]) * rng.lognormal(0, 0.1, (n, 6))).astype(np.int64)
    bare = (17_000 * rng.lognormal(0, 0.1, n)).astype(np.int64)
    beside = None if beside_ns is None else (beside_ns * rng.lognormal(0, 0.1, n)).astype(np.int64)
    return replay.Replay(stages.sum(axis=1), stages, bare, rows, beside)


@pytest.fixture
def results():
    """A run whose promises were all kept."""
    rng = np.random.default_rng(0)
    label = rng.random(500) < 0.1
    parity = replay.Parity(n=500, max_difference=3e-7, mean_difference=1e-8, n_decisions=500, flips=0)
    same = replay.Parity(n=500, max_difference=0.0, mean_difference=0.0, n_decisions=500, flips=0)
    rates = {"this ranker": 0.74, "own history": 0.70, "popular, 4 weeks": 0.46, "popular ever": 0.40}
    return Results(
        fraud=FraudResult(
            n_payments=1_000,
            fraud_share=0.0082,
            n_train=400,
            with_velocity=FraudQuality(0.75, 0.90, 0.34),
            without_velocity=FraudQuality(0.14, 0.64, 0.09),
            label=label,
            score_with=label * 0.5 + rng.random(500) * 0.5,
            score_without=rng.random(500),
            found_with={1: 1.0, 2: 0.5, 3: 0.7},
            found_without={1: 1.0, 2: 0.0, 3: 0.2},
            looked_at=0.01,
            replay=some_replay(run_ns=1_000, beside_ns=18_000),
            parity=same,
            parity_onnx=parity,
            declined=[
                Declined(240.0, 0.97, True, ("the <amount>", "the time of day")),
                Declined(12.5, 0.61, False, ("payments of this card in 1 days",)),
            ],
            kernel="masks, avx512",
            model="trees & more",
        ),
        recommend=RecommendResult(
            n_purchases=1_000,
            n_households=100,
            n_train=400,
            quality=RankingQuality(
                hit_rate=0.74,
                own_history=0.70,
                popularity=0.40,
                popularity_4w=0.46,
                over_own_history=Interval(0.04, 0.02, 0.06),
                n_households=100,
                by_length={name: tuple(np.linspace(rate / 3, rate, 10)) for name, rate in rates.items()},
            ),
            trained_hit_rate=0.74,
            replay=some_replay(rows=500),
            parity=parity,
            parity_fp32=parity,
            model="a network",
        ),
        machine={"CPU": "some <CPU>", "cores": "2"},
        seconds={"a step": 1.5},
    )


def test_replay_answers_every_request_and_times_each_once():
    """Each body and feed meets its contestant once beside the warm-up, in whatever order; the answers stay in order."""
    calls: dict[str, list[object]] = {"call": [], "staged": [], "bare": []}

    def call(body):
        calls["call"].append(body)
        return body.upper()

    def staged(body):
        calls["staged"].append(body)
        return body, (1, 2, 3, 4, 5, 6)

    bodies, feeds = [b"%d-a" % i for i in range(7)], list(range(7))
    times, answers = replay.replay(
        bodies, feeds, call=call, staged=staged, bare=calls["bare"].append, slice_size=3, n_warmup=2
    )
    assert answers == [body.upper() for body in bodies]
    assert calls["call"] == calls["staged"] == bodies[:2] + bodies
    assert calls["bare"] == feeds[:2] + feeds
    assert times.stages.tolist() == [[1, 2, 3, 4, 5, 6]] * 7
    assert (times.whole > 0).all()


def test_replay_sends_every_request_to_the_other_engine_too():
    """It has answers, times, a warm-up and a world of its own; both are told what happened before each request."""
    seen: dict[str, list[object]] = {"before": [], "other": [], "warm": []}
    other = replay.Beside(
        lambda body: body + b"!",
        seen["warm"].append,
        seen["other"].append,
    )
    bodies = [b"%d" % i for i in range(5)]
    times, answers = replay.replay(
        bodies, [0] * 5, call=bytes, before=seen["before"].append, beside=other,
        staged=lambda _: ((), (1,) * 6), bare=bytes, slice_size=2, n_warmup=3,
    )  # fmt: skip
    assert answers == bodies
    assert other.answers == [body + b"!" for body in bodies]
    assert seen == {"before": [0, 1, 2, 3, 4], "other": [0, 1, 2, 3, 4], "warm": bodies[:3]}
    assert times.beside is not None
    assert times.beside_us(0.5) > 0
    assert some_replay().beside_us(0.5) == 0


def test_replay_wants_a_feed_for_each_body():
    """Ratios of different requests would mean nothing."""
    with pytest.raises(ValueError, match="a feed for each of 2 bodies, got 1"):
        replay.replay([b"", b""], [0], call=bytes, staged=lambda _: ((), ()), bare=bytes)


def test_garbage_collector_is_on_again_after_a_failure():
    """A call that raises leaves the process as it was."""
    import gc

    def fail(_):
        raise RuntimeError

    assert gc.isenabled()
    with pytest.raises(RuntimeError):
        replay.replay([b""], [0], call=fail, staged=fail, bare=fail, n_warmup=0)
    assert gc.isenabled()


def test_compare_counts_scores_and_decisions():
    """Differences are absolute; a row of decisions differs when one of its cells does."""
    served, trained = np.array([0.1, 0.5, 0.9], np.float32), np.array([0.1, 0.4, 0.9])
    parity = replay.compare(served, trained, np.array(["a", "b", "b"]), np.array(["a", "a", "b"]))
    assert (parity.n, parity.n_decisions, parity.flips) == (3, 3, 1)
    assert parity.max_difference == pytest.approx(0.1)
    rows = replay.compare(served, trained, np.array([[1, 2], [3, 4]]), np.array([[1, 2], [3, 5]]))
    assert (rows.n_decisions, rows.flips) == (2, 1)


def test_broken_promises_are_told(results):
    """Each promise is judged by its own figure, and the summary says which was broken."""
    assert [promise.kept for promise in results.promises()] == [True, True, True, True]
    assert "BROKEN" not in terminal_summary(results)
    worse = dataclasses.replace(
        results,
        fraud=dataclasses.replace(
            results.fraud,
            without_velocity=FraudQuality(0.3, 0.7, 0.1),
            parity=dataclasses.replace(results.fraud.parity, max_difference=6e-8),
        ),
        recommend=dataclasses.replace(
            results.recommend,
            quality=dataclasses.replace(
                results.recommend.quality, over_own_history=Interval(0.01, -0.001, 0.02)
            ),
            parity_fp32=dataclasses.replace(results.recommend.parity_fp32, max_difference=1e-5),
        ),
    )
    assert [promise.kept for promise in worse.promises()] == [False, False, False, False]
    assert terminal_summary(worse).count("BROKEN") == 4
    assert len({promise.name for promise in worse.promises()}) == 4


def test_summary_holds_the_figures(results):
    """Medians, tails, ratios and qualities stand in the text."""
    text = terminal_summary(results)
    for figure in (
        f"{results.fraud.replay.whole_us(0.99):,.1f}",  # below 100
        f"{results.fraud.replay.ratio:.2f}",
        f"trees (masks, avx512) {results.fraud.replay.whole_us(0.5):,.1f} us",
        f"{results.fraud.replay.beside_us(0.5) / results.fraud.replay.whole_us(0.5):.1f} times as fast",
        "500 scores are the same, 0 of 500 decisions differ",
        "  declined    240.00  0.970  fraud      the <amount>; the time of day",
        "               12.50  0.610  not fraud  payments of this card in 1 days",
        "0.750",
        "0.140",
        "hit rate at 10: 0.740",
    ):
        assert figure in text


@pytest.mark.requires("matplotlib", "sklearn")
def test_page_is_one_file_that_asks_for_nothing(results):
    """Well-formed tags, nine charts inside the page, text escaped, no script and no address of another file."""

    class Reader(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open, self.images, self.addresses = [], [], []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img"):
                self.open.append(tag)
            for name, value in attrs:
                if name in ("src", "href"):
                    (
                        self.images if value.startswith("data:image/svg+xml;base64,") else self.addresses
                    ).append(value)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    page = html_page(results)
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert len(reader.images) == 9
    assert reader.addresses == []
    assert "<script" not in page
    assert "$" not in page
    assert "some &lt;CPU&gt;" in page
    assert "trees &amp; more" in page
    assert "the &lt;amount&gt;; the time of day" in page


@pytest.mark.requires("matplotlib", "sklearn")
def test_equal_results_give_equal_pages(results):
    """No clock, no random id in the charts."""
    assert html_page(results) == html_page(results)
