"""What every route has in common: ids, paths, methods, sizes, and who may ask."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from runner.server.context import REQUEST_ID
from runner.server.prefix import routed_path
from runner.server.security import host_name, is_loopback

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("path", ["/version", "/nowhere", "/v1/models/absent"])
async def test_every_response_has_a_request_id(harness: Any, path: str) -> None:
    async with harness.client() as client:
        fresh = await client.get(path)
        sent = await client.get(path, headers={"x-request-id": "abc-1:2"})
        unusable = await client.get(path, headers={"x-request-id": "a b\tc"})
    assert fresh.headers["x-request-id"].startswith("req_")
    assert sent.headers["x-request-id"] == "abc-1:2"
    assert unusable.headers["x-request-id"].startswith("req_")
    if sent.status_code >= 400:
        assert sent.json()["error"]["request_id"] == "abc-1:2"
    assert REQUEST_ID.get() == ""


async def test_refusals_have_a_request_id_too(harness: Any) -> None:
    async with harness.client() as client:
        response = await client.get("/version", headers={"host": "evil.example"})
    assert response.status_code == 403
    assert response.json()["error"]["request_id"] == response.headers["x-request-id"]


async def test_the_log_has_a_line_per_request(
    harness: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "runner.access")
    async with harness.client() as client:
        await client.get("/exp/vDD4.40/version?secret=1")
    (record,) = (r for r in caplog.records if r.name == "runner.access")
    assert record.getMessage().startswith("GET /exp/vDD4.40/version 200 ")
    assert "secret" not in record.getMessage()


async def test_an_unknown_path_is_a_404_in_openais_envelope(harness: Any) -> None:
    async with harness.client() as client:
        response = await client.get("/engines/parrot/v1/nothing")
    assert response.status_code == 404
    assert response.json()["error"] == {
        "message": "there is nothing at GET /engines/parrot/v1/nothing",
        "type": "invalid_request_error",
        "param": None,
        "code": "not_found",
        "request_id": response.headers["x-request-id"],
    }


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("PUT", "/engines/v1/models", "GET"),
        ("POST", "/models/ai/tiny/tag", "DELETE"),
        ("GET", "/engines/unload", "POST"),
    ],
)
async def test_a_wrong_method_is_a_405_that_says_what_is_allowed(
    harness: Any, method: str, path: str, allowed: str
) -> None:
    async with harness.client() as client:
        response = await client.request(method, path)
    assert response.status_code == 405
    assert allowed in response.headers["allow"]
    assert response.json()["error"]["code"] == "method_not_allowed"


async def test_a_body_over_the_limit_is_a_413_by_length_and_by_chunks(harness: Any) -> None:
    harness.set(body_limit_bytes=100)

    async def chunks() -> Any:
        for _ in range(20):
            yield b" " * 10

    async with harness.client() as client:
        by_length = await client.post("/v1/embeddings", content=b" " * 101)
        by_chunks = await client.post("/v1/embeddings", content=chunks())
        small = await client.post("/v1/embeddings", content=b" " * 100)
    for response in (by_length, by_chunks):
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "body_too_large"
        assert "100 bytes" in response.json()["error"]["message"]
    assert small.status_code == 400


@pytest.mark.parametrize(
    ("path", "routed"),
    [
        ("/exp/vDD4.40/v1/models", "/v1/models"),
        ("/exp/vDD4.40", "/"),
        ("/exp/vDD4.40x/y", "/exp/vDD4.40x/y"),
        ("//v1///models", "/v1/models"),
        ("//exp//vDD4.40//engines/v1/models", "/engines/v1/models"),
        ("/v1/models", "/v1/models"),
    ],
)
async def test_prefix_and_double_slashes_are_dropped(harness: Any, path: str, routed: str) -> None:
    assert routed_path(path) == routed
    if routed.endswith("models"):
        async with harness.client() as client:
            assert (await client.get(f"http://localhost{path}")).status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
async def test_the_root_says_that_runner_is_running(harness: Any, method: str) -> None:
    async with harness.client() as client:
        response = await client.request(method, "/")
    assert (response.status_code, response.text) == (200, "Runner is running")


async def test_version_has_version_and_pid(harness: Any) -> None:
    async with harness.client() as client:
        answer = (await client.post("/version")).json()
    assert set(answer) == {"version", "pid"}


@pytest.mark.parametrize(
    ("host", "is_allowed"),
    [
        ("127.0.0.1:12434", True),
        ("127.0.0.2", True),
        ("localhost:99", True),
        ("LocalHost", True),
        ("[::1]:12434", True),
        ("model-runner.docker.internal", True),
        ("my.machine:12434", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("evil.example@localhost", False),
        ("192.168.1.9", False),
        ("localhost:port", False),
        ("", False),
    ],
)
async def test_host_is_checked_on_tcp_but_not_on_the_socket(
    harness: Any, host: str, is_allowed: bool
) -> None:
    harness.set(allowed_hosts=("my.machine",))
    for over_socket in (False, True):
        async with harness.client(over_socket=over_socket) as client:
            response = await client.get("/version", headers={"host": host})
        # Litestar itself refuses a malformed Host.
        assert response.status_code in ((200, 400) if over_socket or is_allowed else (403,))
        assert (response.status_code == 200) >= is_allowed


async def test_the_address_of_the_connection_is_an_allowed_host(harness: Any) -> None:
    async with harness.client() as client:
        response = await client.get("http://192.168.1.9:12434/version")
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [
        ("http://localhost:3000", True),
        ("https://127.0.0.1", True),
        ("http://[::1]:8080", True),
        ("http://model-runner.docker.internal", True),
        ("https://app.example", True),
        ("https://app.example:444", False),
        ("https://evil.example", False),
        ("http://localhost.evil.example", False),
        ("null", False),
        ("file://", False),
        ("ftp://localhost", False),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_origin_is_checked_on_every_method(
    harness: Any, origin: str, is_allowed: bool, method: str
) -> None:
    harness.set(allowed_origins=("https://app.example",))
    headers = {"origin": origin, "access-control-request-headers": "x-api-key"}
    async with harness.client() as client:
        response = await client.request(method, "/version", headers=headers)
    if not is_allowed:
        assert response.status_code == 403
        assert response.json()["error"]["code"] == "forbidden"
        assert "access-control-allow-origin" not in response.headers
        return
    assert response.status_code == (204 if method == "OPTIONS" else 200)
    assert response.headers["access-control-allow-origin"] == origin
    assert response.headers["vary"] == "Origin"
    if method == "OPTIONS":
        assert response.headers["access-control-allow-methods"] == "GET, POST, DELETE"
        assert response.headers["access-control-allow-headers"] == "x-api-key"


async def test_the_socket_takes_any_origin(harness: Any) -> None:
    async with harness.client(over_socket=True) as client:
        response = await client.get("/version", headers={"origin": "https://evil.example"})
    assert response.status_code == 200


async def test_a_star_allows_every_host_and_origin(harness: Any) -> None:
    harness.set(allowed_hosts=("*",), allowed_origins=("*",))
    headers = {"origin": "https://anything.example", "host": "anything.example"}
    async with harness.client() as client:
        assert (await client.get("/version", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Basic s3cret"}, 401),
        ({"authorization": "Bearer s3cret"}, 200),
        ({"authorization": "bearer s3cret"}, 200),
        ({"x-api-key": "s3cret"}, 200),
        ({"x-api-key": "s3cre"}, 401),
        ({"x-api-key": "s3cret", "authorization": "Bearer placeholder"}, 200),
    ],
)
async def test_the_api_key_is_asked_for_on_tcp(
    harness: Any, headers: dict[str, str], status: int
) -> None:
    harness.set(api_key="s3cret")
    async with harness.client() as client:
        response = await client.get("/engines/ps", headers=headers)
    async with harness.client(over_socket=True) as client:
        over_socket = await client.get("/engines/ps")
    assert (response.status_code, over_socket.status_code) == (status, 200)
    if status == 401:
        assert response.json()["error"]["code"] == "unauthorized"
        assert response.headers["x-should-retry"] == "false"
        assert response.headers["www-authenticate"] == "Bearer"


async def test_a_preflight_needs_no_key_and_a_refusal_can_be_read_by_the_page(
    harness: Any,
) -> None:
    harness.set(api_key="s3cret")
    headers = {"origin": "http://localhost:3000"}
    async with harness.client() as client:
        preflight = await client.options("/v1/models", headers=headers)
        refusal = await client.get("/v1/models", headers=headers)
    assert preflight.status_code == 204
    assert refusal.status_code == 401
    assert refusal.headers["access-control-allow-origin"] == headers["origin"]


def test_host_names_are_parsed_strictly() -> None:
    assert host_name("Example.com.:80") == "example.com"
    assert host_name("[::1]") == "::1"
    for bad in ("a/b", "a?b", "a#b", "u@a", "a:b", "[::1", ""):
        assert host_name(bad) is None


def test_loopback_is_decided_by_address_not_by_looks() -> None:
    assert all(is_loopback(name) for name in ("localhost", "x.localhost", "127.9.9.9", "::1"))
    assert not any(is_loopback(name) for name in ("0.0.0.0", "127.0.0.1.x", "10.0.0.1", "::"))


async def test_the_openapi_document_has_the_schemas(harness: Any) -> None:
    async with harness.client() as client:
        document = (await client.get("/openapi.json")).json()
    chat = document["paths"]["/engines/{backend}/v1/chat/completions"]["post"]
    body = chat["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    answer = chat["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    schemas = document["components"]["schemas"]
    assert schemas[body.rsplit("/", 1)[1]]["properties"]["temperature"]["anyOf"][0]["maximum"] == 2
    assert "choices" in schemas[answer.rsplit("/", 1)[1]]["properties"]
    assert [p["name"] for p in chat["parameters"]] == ["backend"]
    for path in ("/v1/completions", "/engines/v1/embeddings", "/v1/models", "/models/create"):
        assert path in document["paths"]
    ids = [op["operationId"] for item in document["paths"].values() for op in item.values()]
    assert len(ids) == len(set(ids))
