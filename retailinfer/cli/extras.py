"""Whether optional packages are there, asked before anything imports them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from retailinfer.errors import ConfigError

__all__ = ["need"]


def need(what: str, modules: Sequence[str], extra: str) -> None:
    """Raises: ConfigError that says what to install."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ConfigError(f"{what} needs {', '.join(missing)}", hint=f"pip install 'retailinfer[{extra}]'")
