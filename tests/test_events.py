"""events.py: hooks hear of every event, and nothing that they do reaches the caller."""

from __future__ import annotations

import warnings

import pytest

from retailinfer.contracts import Decision
from retailinfer.errors import ConfigError
from retailinfer.monitoring.events import Answered, Changed, Hooks

EVENT = Changed("overload", "no", "yes", "all permits taken", 1)


class Keeps:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def on_event(self, event: object) -> None:
        self.heard.append(event)


class Raises:
    """Raises."""

    def on_event(self, event: object) -> None:
        raise ValueError(event)


def test_all_hooks_hear_of_an_event_in_order():
    """The same object, made once."""
    first, second = Keeps(), Keeps()
    hooks = Hooks([first, second])
    assert hooks
    hooks.on_event(EVENT)
    assert first.heard[0] is second.heard[0] is EVENT


def test_no_hooks_are_false():
    """So that nobody makes an event for nothing."""
    assert not Hooks()
    Hooks().on_event(EVENT)


def test_one_that_raises_is_counted_and_warned_of_once():
    """The others hear of it nevertheless; each by its name."""
    keeps = Keeps()
    hooks = Hooks([Raises(), keeps, Raises()])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(5):
            hooks.on_event(EVENT)
    assert len(keeps.heard) == 5
    assert hooks.failures == 10
    assert hooks.failures_by_hook == {"Raises": 5, "Keeps": 0, "Raises#2": 5}
    assert [str(one.message)[:32] for one in caught] == [
        "the hook Raises raised ValueErro",
        "the hook Raises#2 raised ValueEr",
    ]


def test_warnings_that_are_errors_do_not_reach_the_caller():
    """Nor does a broken way to show them."""
    hooks = Hooks([Raises(), Keeps()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hooks.on_event(EVENT)

    def show(*_: object, **__: object) -> None:
        raise OSError("stderr is closed")

    hooks = Hooks([Raises()])
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        hooks.on_event(EVENT)
    assert hooks.failures == 1


def test_what_stops_the_process_is_not_swallowed():
    """Ctrl-C in a hook is Ctrl-C."""

    class Stops:
        def on_event(self, event: object) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Hooks([Stops()]).on_event(EVENT)


@pytest.mark.parametrize("given", [[print], [Keeps], [None], Keeps(), 7, [object()]])
def test_what_is_no_hook_is_refused(given):
    """When the hooks are given, not when the first event comes."""
    with pytest.raises(ConfigError, match="on_event"):
        Hooks(given)


def test_events_are_frozen():
    """They are shared by all hooks."""
    event = Answered(Decision(id="a", score=0.5), {}, 1, 2)
    with pytest.raises(AttributeError):
        event.took_ns = 3  # type: ignore[misc]
