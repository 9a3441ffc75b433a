"""Which environment variables a worker sees: few, and never a secret."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["worker_environment"]

_ALLOWED = frozenset(
    {
        "HOME",
        "LANG",
        "LD_LIBRARY_PATH",
        "PATH",
        "PYTHONPATH",
        "TMPDIR",
        "TZ",
        "VIRTUAL_ENV",
        # What tells the child which plugins to load, what to log, and where the config file is.
        "LOG_LEVEL",
        "RUNNER_HOME",
        "RUNNER_PLUGINS",
        "RUNNER_PLUGINS_BLOCK",
        "RUNNER_STRICT_PLUGINS",
        "RUNNER_TRACE_HOOKS",
        "XDG_DATA_HOME",
    }
)
_SECRET = re.compile(r"(^|_)(TOKENS?|SECRETS?|PASSWORD|PASSWD|KEYS?|CREDENTIALS?)$", re.IGNORECASE)


def worker_environment(names: tuple[str, ...], environ: Mapping[str, str]) -> dict[str, str]:
    """The part of ``environ`` that a worker may see.

    :param names: what the backend declares (``BackendInfo.environment``), exactly. A name that
        looks like a secret (``HF_TOKEN``, ``RUNNER_API_KEY``) stays out even if declared.
    """
    wanted = _ALLOWED.union(name for name in names if not _SECRET.search(name))
    return {
        name: value for name, value in environ.items() if name in wanted or name.startswith("LC_")
    }
