"""HTTP to the daemon, over its Unix socket or a URL, with its errors as exceptions again."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from runner import __version__
from runner.api.errors import RunnerError, error_from_wire
from runner.cli.errors import DaemonError, DaemonLost, DaemonUnreachable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from runner.config import Address

__all__ = ["Client", "ServerInfo", "convert", "decode", "error_in", "lines", "model_path", "sse"]

T = TypeVar("T")

CONNECT_TIMEOUT_S = 10.0
#: Longest silence in a plain answer: a first `backends list` waits for every engine's probe.
READ_TIMEOUT_S = 120.0

#: By status, for servers that do not answer with the error envelope.
_CODES = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    409: "conflict",
}


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What ``GET /version`` says; a server that is not Runner may leave out the pid."""

    version: str
    pid: int | None = None


class Client:
    """A daemon at one address. Use it as a context manager."""

    def __init__(self, address: Address, *, api_key: str | None = None) -> None:
        self.address = address
        headers = {"user-agent": f"runner-cli/{__version__}"}
        transport = None
        if address.socket is not None:
            # verify=False: loading the CA bundle takes 20 ms, and a socket speaks no TLS.
            transport = httpx.HTTPTransport(uds=str(address.socket), verify=False)
        elif api_key:
            headers["authorization"] = f"Bearer {api_key}"
        self._http = httpx.Client(
            base_url=address.url or "http://localhost",
            transport=transport,
            headers=headers,
            timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            verify=(address.url or "").startswith("https://"),
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.close()

    def server_info(self) -> ServerInfo | None:
        """The server's version, or None when nothing listens at the address.

        :raises DaemonUnreachable: something is in the way, such as the socket's permissions.
        """
        if self.address.socket is not None and not _is_listening(self.address.socket):
            return None
        try:
            return convert(decode(self._request("GET", "/version").content), ServerInfo)
        except DaemonUnreachable:
            return None

    def get(self, path: str, kind: Any = Any) -> Any:
        """The JSON at a path, as ``kind``."""
        return decode(self._request("GET", path).content, kind)

    def post(self, path: str, body: object, *, headers: Mapping[str, str] | None = None) -> Any:
        """POST JSON and return the JSON answer, None if it is empty. Waits as long as it takes."""
        response = self._request("POST", path, body=body, headers=headers, read_timeout_s=None)
        return decode(response.content) if response.content else None

    def delete(self, path: str, params: Mapping[str, str]) -> Any:
        """DELETE, and the JSON answer."""
        response = self._request("DELETE", path, params=params)
        return decode(response.content) if response.content else None

    @contextmanager
    def stream(
        self,
        method: Literal["GET", "POST"],
        path: str,
        body: object = None,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[httpx.Response]:
        """An answer that is read while it arrives; leaving the block hangs up.

        :raises RunnerError: the status is an error, or the connection breaks inside the block.
        """
        request = self._build(
            method, path, body=body, params=params, headers=headers, read_timeout_s=None
        )
        with self._translated():
            response = self._http.send(request, stream=True)
            try:
                if response.is_error:
                    response.read()
                    raise _error_of(response)
                yield response
            finally:
                response.close()

    def _request(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        read_timeout_s: float | None = READ_TIMEOUT_S,
    ) -> httpx.Response:
        with self._translated():
            response = self._http.send(
                self._build(
                    method,
                    path,
                    body=body,
                    params=params,
                    headers=headers,
                    read_timeout_s=read_timeout_s,
                )
            )
        if response.is_error:
            raise _error_of(response)
        return response

    def _build(
        self,
        method: str,
        path: str,
        *,
        body: object,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
        read_timeout_s: float | None,
    ) -> httpx.Request:
        content = None if body is None else msgspec.json.encode(body)
        kind = {} if body is None else {"content-type": "application/json"}
        return self._http.build_request(
            method,
            path,
            content=content,
            params=params,
            headers={**kind, **(headers or {})},
            timeout=httpx.Timeout(read_timeout_s, connect=CONNECT_TIMEOUT_S),
        )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
            raise DaemonUnreachable(f"no daemon answers at {self.address}: {exc}") from exc
        except httpx.ReadTimeout as exc:
            raise DaemonLost(f"the daemon at {self.address} did not answer in time") from exc
        except httpx.HTTPError as exc:
            what = str(exc) or type(exc).__name__
            raise DaemonLost(
                f"the connection to the daemon at {self.address} broke: {what}"
            ) from exc
        except httpx.InvalidURL as exc:
            raise DaemonUnreachable(f"{self.address} is not a usable address: {exc}") from exc


def _is_listening(path: Path) -> bool:
    """Whether a server accepts on a Unix socket. (httpx leaks its socket when none does.)"""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(CONNECT_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError as exc:
            raise DaemonUnreachable(f"cannot connect to {path}: {exc.strerror or exc}") from exc
    return True


def model_path(reference: str, base: str = "/models") -> str:
    """The URL path of a model: ``/models/ai/smollm2:latest``."""
    return f"{base}/{quote(reference, safe='/:@')}"


def decode(data: bytes, kind: Any = Any) -> Any:
    """JSON of the daemon, as ``kind``.

    :raises DaemonError: it is something else.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as exc:
        start = data[:80].decode(errors="replace")
        raise DaemonError(f"the daemon's answer cannot be understood ({exc}): {start!r}") from exc


def convert(value: object, kind: type[T]) -> T:
    """A decoded JSON value as ``kind``; the counterpart of :func:`decode`."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as exc:
        raise DaemonError(f"the daemon's answer cannot be understood: {exc}") from exc


def lines(response: httpx.Response) -> Iterator[bytes]:
    """The lines of a streamed answer, without their ends.

    Not ``iter_lines``: it also splits at U+2028 and its like, which JSON strings may hold.
    """
    rest = b""
    for chunk in response.iter_bytes():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r")
    if rest:
        yield rest


def sse(source: Iterator[bytes]) -> Iterator[tuple[Literal["comment", "data"], bytes]]:
    """Comments and data of server-sent events; other fields carry nothing for us."""
    data: list[bytes] = []
    for line in source:
        if line.startswith(b":"):
            yield "comment", line[1:].strip()
        elif line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif not line and data:
            yield "data", b"\n".join(data)
            data = []
    if data:
        yield "data", b"\n".join(data)


def error_in(payload: object) -> RunnerError | None:
    """The error that a decoded JSON object carries in OpenAI's envelope, if it does."""
    error = payload.get("error") if isinstance(payload, dict) else None
    if isinstance(error, str):
        return RunnerError(error)
    if not isinstance(error, dict):
        return None
    message = str(error.get("message") or "the daemon reported an error without a message")
    param = error.get("param")
    return error_from_wire(
        str(error.get("code")), message, param=None if param is None else str(param)
    )


def _error_of(response: httpx.Response) -> RunnerError:
    try:
        error = error_in(msgspec.json.decode(response.content))
    except msgspec.DecodeError:
        error = None
    if error is None:
        text = response.text.strip() or f"the daemon answered {response.status_code}"
        error = error_from_wire(_CODES.get(response.status_code, "internal_error"), text)
    return error
