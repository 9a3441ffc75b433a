"""The daemon's and the CLI's settings: the only reader of the environment and the config file.

Precedence, weakest first: default, ``config.toml`` in ``RUNNER_HOME``, environment, command line.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import tempfile
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from runner.api.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Address",
    "Settings",
    "load_settings",
    "parse_address",
    "parse_duration",
    "process_environment",
]

DEFAULT_PORT = 12434
#: ``sun_path`` holds 108 bytes on Linux and 104 on macOS, with the final NUL.
_MAX_SOCKET_PATH = 100
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
Bytes = Annotated[int, msgspec.Meta(ge=1)]


class Address(msgspec.Struct, frozen=True):
    """Where a daemon listens: a Unix socket, or a base URL."""

    socket: Path | None = None
    url: str | None = None

    def __str__(self) -> str:
        return f"unix://{self.socket}" if self.socket is not None else str(self.url)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set. ``config.toml`` uses these names, at its top level."""

    #: State: store, logs, sockets, config. ``RUNNER_HOME``.
    home: Path
    #: The model store alone. ``MODELS_PATH``.
    models_path: Path
    socket_path: Path
    #: The daemon the CLI talks to, when it is not this home's own. ``RUNNER_HOST``.
    remote: Address | None = None

    #: TCP address to listen on; ``127.0.0.1`` brings ``[::1]`` with it. ``--host``.
    host: str = "127.0.0.1"
    #: TCP port; 0 takes a free one. ``--port``.
    port: Port = DEFAULT_PORT
    #: False listens on the Unix socket only. ``--no-tcp``.
    tcp: bool = True
    #: Asked of every TCP client when set. ``RUNNER_API_KEY``.
    api_key: str | None = None
    #: Allows a bind beyond loopback without a key. ``--allow-unauthenticated``.
    allow_unauthenticated: bool = False
    #: Further values of ``Host`` and ``Origin`` to accept on TCP. ``RUNNER_ALLOWED_HOSTS``,
    #: ``RUNNER_ALLOWED_ORIGINS`` (comma-separated).
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()

    #: Largest request body. ``RUNNER_BODY_LIMIT`` (bytes).
    body_limit_bytes: Bytes = 64 * 2**20
    #: How long a stream waits for its first event before it commits to status 200.
    stream_commit_s: Seconds = 10.0
    #: Idle time after which a model is unloaded; -1 keeps it. ``RUNNER_KEEP_ALIVE``.
    keep_alive_s: float = 300.0
    #: Requests that may wait for memory or a load, in all. ``RUNNER_QUEUE_LIMIT``.
    queue_limit: Annotated[int, msgspec.Meta(ge=0)] = 512
    #: How long a request may wait before busy models are closed to make room for it.
    starvation_s: Seconds = 20.0
    #: A load that shows no progress for this long is ended.
    load_stall_s: Seconds = 120.0
    #: How long SIGTERM lets running requests finish.
    drain_s: Seconds = 30.0
    #: Memory all models may use together; None is the machine's, less a reserve.
    #: ``RUNNER_MEMORY_LIMIT`` (bytes).
    memory_limit_bytes: Bytes | None = None

    #: Tables ``[backends."<name>"]``: ``context_size``, ``max_sequences``, the backend's options.
    backends: dict[str, dict[str, Any]] = {}

    #: Load only these plugins; None loads all. ``RUNNER_PLUGINS`` (comma-separated).
    plugins_allow: tuple[str, ...] | None = None
    #: Never load these. ``RUNNER_PLUGINS_BLOCK``.
    plugins_block: tuple[str, ...] = ()
    #: Raise when a plugin is broken, for tests. ``RUNNER_STRICT_PLUGINS=1``.
    plugins_strict: bool = False
    #: Log every hook call. ``RUNNER_TRACE_HOOKS=1``.
    trace_hooks: bool = False
    #: ``debug``, ``info``, ``warning`` or ``error``. ``LOG_LEVEL``.
    log_level: str = "info"

    @property
    def log_dir(self) -> Path:
        """Where ``runner.log`` and ``engine.log`` are written."""
        return self.home / "logs"

    @property
    def config_path(self) -> Path:
        """The config file, which need not exist."""
        return self.home / "config.toml"

    @property
    def address(self) -> Address:
        """The daemon the CLI talks to."""
        return self.remote or Address(socket=self.socket_path)


def process_environment() -> dict[str, str]:
    """This process's environment, for those who pass parts of it on."""
    return dict(os.environ)


def parse_duration(text: str) -> float:
    """Seconds in ``5m``, ``1h30m``, ``90s``, ``250ms`` or ``300``; any negative is -1 (forever).

    :raises RequestError: it is none of these.
    """
    text = text.strip()
    try:
        seconds = float(text)
    except ValueError:
        negative, rest = text.startswith("-"), text.removeprefix("-")
        parts = _DURATION.findall(rest)
        if not parts or "".join(n + u for n, u in parts) != rest:
            raise RequestError(
                f'invalid duration "{text}": use for example 5m, 1h30m, 90s, 0 or -1',
                param="keep_alive",
            ) from None
        seconds = -1.0 if negative else sum(float(n) * _SECONDS[u] for n, u in parts)
    if not math.isfinite(seconds):
        raise RequestError(f'invalid duration "{text}"', param="keep_alive")
    return seconds if seconds >= 0 else -1.0


def parse_address(text: str) -> Address:
    """An :class:`Address` from ``unix:///path``, ``http://host:port`` or ``https://…``.

    :raises RequestError: it is neither.
    """
    if text.startswith("unix://"):
        path = text.removeprefix("unix://")
        if path.startswith("/"):
            return Address(socket=Path(path))
    elif text.startswith(("http://", "https://")) and len(text.split("://", 1)[1]) > 0:
        return Address(url=text.rstrip("/"))
    raise RequestError(
        f'invalid RUNNER_HOST "{text}": use unix:///path/to.sock or http://host:port'
    )


def load_settings(
    environ: Mapping[str, str] | None = None, overrides: Mapping[str, Any] | None = None
) -> Settings:
    """Read config file and environment, and lay the command line's ``overrides`` on top.

    :param overrides: by field name; None means not given.
    :raises RequestError: a value is unusable; the message names where it came from.
    """
    env = os.environ if environ is None else environ
    home = (
        Path(env["RUNNER_HOME"]).expanduser().absolute()
        if env.get("RUNNER_HOME")
        else _default_home()
    )
    values: dict[str, Any] = {
        "home": home,
        "models_path": home / "models",
        "socket_path": _default_socket(home, env),
    }
    values |= _from_file(home / "config.toml")
    values |= _from_environment(env)
    values |= {k: v for k, v in (overrides or {}).items() if v is not None}
    try:
        return msgspec.convert(values, Settings, strict=False, builtin_types=(Path,))
    except msgspec.ValidationError as exc:
        raise RequestError(f"invalid setting: {exc}") from exc


def _default_home() -> Path:
    import platformdirs  # noqa: PLC0415 - only needed without RUNNER_HOME

    return Path(platformdirs.user_data_dir("model-runner", appauthor=False))


def _default_socket(home: Path, env: Mapping[str, str]) -> Path:
    """The socket of this home; elsewhere when its path is longer than AF_UNIX takes."""
    path = home / "runner.sock"
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        return path
    digest = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    base = env.get("XDG_RUNTIME_DIR") or f"{tempfile.gettempdir()}/model-runner-{os.getuid()}"
    return Path(base) / f"model-runner-{digest}.sock"


def _from_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise RequestError(f"cannot read {path}: {exc}") from exc
    if unknown := sorted(
        values.keys() - set(Settings.__struct_fields__) | values.keys() & {"home", "remote"}
    ):
        raise RequestError(f"{path}: unknown setting {', '.join(unknown)}")
    if isinstance(values.get("keep_alive_s"), str):
        values["keep_alive_s"] = parse_duration(values["keep_alive_s"])
    return values


def _from_environment(env: Mapping[str, str]) -> dict[str, Any]:
    def names(text: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",") if part.strip())

    def flag(text: str) -> bool:
        return text.lower() not in {"", "0", "false", "no"}

    readers: dict[str, tuple[str, Any]] = {
        "MODELS_PATH": ("models_path", lambda text: Path(text).expanduser().absolute()),
        "MODEL_RUNNER_HOST": ("remote", parse_address),
        "RUNNER_HOST": ("remote", parse_address),
        "RUNNER_API_KEY": ("api_key", str),
        "RUNNER_ALLOWED_HOSTS": ("allowed_hosts", names),
        "RUNNER_ALLOWED_ORIGINS": ("allowed_origins", names),
        "RUNNER_BODY_LIMIT": ("body_limit_bytes", int),
        "RUNNER_KEEP_ALIVE": ("keep_alive_s", parse_duration),
        "RUNNER_QUEUE_LIMIT": ("queue_limit", int),
        "RUNNER_MEMORY_LIMIT": ("memory_limit_bytes", int),
        "RUNNER_PLUGINS": ("plugins_allow", names),
        "RUNNER_PLUGINS_BLOCK": ("plugins_block", names),
        "RUNNER_STRICT_PLUGINS": ("plugins_strict", flag),
        "RUNNER_TRACE_HOOKS": ("trace_hooks", flag),
        "LOG_LEVEL": ("log_level", str.lower),
    }
    values: dict[str, Any] = {}
    for name, (field, read) in readers.items():
        # An empty RUNNER_PLUGINS means: none. Elsewhere empty means unset.
        if (text := env.get(name)) is not None and (text or name == "RUNNER_PLUGINS"):
            try:
                values[field] = read(text)
            except (ValueError, RequestError) as exc:
                raise RequestError(f"{name}={text!r}: {exc}") from exc
    return values
