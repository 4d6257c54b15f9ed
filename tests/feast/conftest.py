"""Tests that need Feast, which needs older packages than the other tests: they are there only in Feast's own environment.

Without Feast nothing here is collected, so that the other run has nothing to skip; `make feast` fails if nothing was collected.
"""

from __future__ import annotations

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("feast") else ["test_*.py"]
