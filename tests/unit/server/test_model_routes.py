"""Docker Model Runner's model API: listing, pulling, removing."""

from __future__ import annotations

import html
import json
from typing import Any

import anyio.from_thread
import pytest

from runner.api.errors import ModelFileError
from runner.api.sources import FoundModel, Source
from runner.testing.waiting import wait_until_async

pytestmark = pytest.mark.anyio


class Files(Source):
    name = "file"
    reads_host_files = True

    def claims(self, reference: str) -> bool:
        return reference.startswith("file://")

    def find(self, reference: str) -> FoundModel:
        return FoundModel(name="file/m:latest", weights=(reference.removeprefix("file://"),))


class Shelf(Source):
    name = "shelf"

    def claims(self, reference: str) -> bool:
        return reference.startswith("shelf/")

    def find(self, reference: str) -> FoundModel:
        return FoundModel(name=f"{reference}:latest", weights=("/x",))


@pytest.fixture(autouse=True)
def _sources(harness: Any) -> None:
    harness.plugins.sources = (Files(), Shelf())


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


async def test_models_are_listed_with_their_config(harness: Any) -> None:
    async with harness.client() as client:
        (model,) = (await client.get("/models")).json()
        one = (await client.get("/models/docker.io/ai/tiny:latest")).json()
        partial = (await client.get("/models/tiny")).json()
        digest = (await client.get(f"/models/ai/tiny@{model['id']}")).json()
    assert model == one == partial == digest
    assert model == {
        "id": harness.store.models[0].id,
        "tags": ["docker.io/ai/tiny:latest"],
        "created": 1700000000,
        "config": {
            "format": "gguf",
            "architecture": "llama",
            "size": "10MiB",
            "context_size": 2048,
        },
    }


async def test_a_missing_model_and_a_remote_look_are_told_apart(harness: Any) -> None:
    async with harness.client() as client:
        missing = await client.get("/models/ai/absent")
        remote = await client.get("/models/ai/tiny?remote")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert (remote.status_code, remote.json()["error"]["param"]) == (400, "remote")


async def test_removing_a_model_unloads_it(harness: Any) -> None:
    async with harness.client() as client:
        answer = (await client.delete("/models/ai/tiny")).json()
    assert answer == [{"Untagged": "ai/tiny"}, {"Deleted": harness.store.models[0].id}]
    assert harness.scheduler.unloaded == [{"model_ids": [harness.store.models[0].id]}]


async def test_a_model_in_use_is_removed_only_by_force(harness: Any) -> None:
    harness.scheduler.used = {harness.store.models[0].id}
    async with harness.client() as client:
        refused = await client.delete("/models/ai/tiny")
        forced = await client.delete("/models/ai/tiny?force=true")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_in_use")
    assert forced.status_code == 200


async def test_pulling_what_is_there_is_a_success(harness: Any) -> None:
    async with harness.client() as client:
        response = await client.post("/models/create", json={"from": "ai/tiny"})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    assert "&#34;type&#34;:&#34;success&#34;" in response.text
    (line,) = lines_of(html.unescape(response.text))
    assert line["message"] == "Using cached model: 10MiB"
    assert line["mode"] == "pull"


@pytest.mark.parametrize(
    ("accept", "is_json"),
    [("application/json", True), ("application/json, */*", False), ("*/*", False)],
)
async def test_lines_are_escaped_unless_exactly_json_is_accepted(
    harness: Any, accept: str, is_json: bool
) -> None:
    headers = {"accept": accept}
    async with harness.client() as client:
        response = await client.post("/models/create", json={"from": "ai/tiny"}, headers=headers)
    assert response.text.startswith("{" if is_json else "{&#34;")
    assert response.headers["content-type"].startswith("application/json") == is_json


async def test_a_pull_tells_its_progress(harness: Any) -> None:
    def add(found: FoundModel, *, source: Source, progress: Any) -> Any:
        progress(2**20, 2 * 2**20)
        progress(2**20 + 1, 2 * 2**20)
        progress(2 * 2**20, 2 * 2**20)
        return harness.store.models[0]

    harness.store.add = add
    headers = {"accept": "application/json"}
    async with harness.client() as client:
        response = await client.post("/models/create", json={"from": "shelf/m"}, headers=headers)
    first, last, success = lines_of(response.text)
    assert first["type"] == "progress"
    assert first["message"] == "Downloaded: 1.00 MB"
    assert first["total"] == 2 * 2**20
    assert first["layer"]["current"] == 2**20
    assert last["layer"]["current"] == last["layer"]["size"]
    assert (success["type"], success["model"]) == ("success", "ai/tiny")


async def test_a_failure_before_progress_has_its_status_and_after_it_is_a_line(
    harness: Any,
) -> None:
    def add(found: FoundModel, *, source: Source, progress: Any) -> Any:
        if found.name == "shelf/late:latest":
            progress(1, 2)
        raise ModelFileError("not a model: it is a cat")

    harness.store.add = add
    headers = {"accept": "application/json"}
    async with harness.client() as client:
        early = await client.post("/models/create", json={"from": "shelf/m"}, headers=headers)
        late = await client.post("/models/create", json={"from": "shelf/late"}, headers=headers)
    assert (early.status_code, early.json()["error"]["code"]) == (422, "model_file_invalid")
    assert late.status_code == 200
    progress, error = lines_of(late.text)
    assert progress["type"] == "progress"
    assert (error["type"], error["code"]) == ("error", "model_file_invalid")
    assert error["message"] == "Error: not a model: it is a cat"


async def test_host_files_are_read_for_the_socket_only(harness: Any) -> None:
    body = {"from": "file:///etc/model.gguf"}
    async with harness.client() as client:
        over_tcp = await client.post("/models/create", json=body)
    async with harness.client(over_socket=True) as client:
        over_socket = await client.post("/models/create", json=body)
    assert (over_tcp.status_code, over_tcp.json()["error"]["code"]) == (403, "forbidden")
    assert over_socket.status_code == 200


@pytest.mark.parametrize("body", [{}, {"from": " "}, {"from": 3}, []])
async def test_a_pull_of_nothing_is_a_400(harness: Any, body: Any) -> None:
    async with harness.client() as client:
        assert (await client.post("/models/create", json=body)).status_code == 400


async def test_a_registrys_model_is_an_honest_404(harness: Any) -> None:
    async with harness.client() as client:
        response = await client.post("/models/create", json={"from": "ai/absent"})
    assert response.status_code == 404
    assert "cannot pull from registries yet" in response.json()["error"]["message"]


async def test_a_client_that_leaves_a_pull_stops_it(harness: Any) -> None:
    stopped = []

    def add(found: FoundModel, *, source: Source, progress: Any) -> Any:
        try:
            while True:
                progress(1, 10**9)
                anyio.from_thread.run(anyio.sleep, 0.01)
        except BaseException:
            stopped.append(True)
            raise

    harness.store.add = add
    async with harness.listen() as (client, _):
        body = {"from": "shelf/m"}
        async with client.stream("POST", "/models/create", json=body) as response:
            async for _line in response.aiter_lines():
                break
        await wait_until_async(lambda: stopped, 2, "the pull to stop")
