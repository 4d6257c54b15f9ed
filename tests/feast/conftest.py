"""Tests that need Feast, which needs older packages than the other tests: they are there only in Feast's own environment.

Without Feast nothing here is collected: the other run has nothing to skip, and `make feast` fails if nothing was collected.
"""

from __future__ import annotations

import importlib.util

# This folder itself answers to the name, as a namespace: that one has no origin.
_spec = importlib.util.find_spec("feast")
collect_ignore_glob = [] if _spec is not None and _spec.origin else ["test_*.py"]
