"""The container's entry: what hosts set becomes vLLM's command line, and Vertex AI's routes become vLLM's."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest

from spectralquant.errors import InputError
from spectralquant.integrations.container import entry
from spectralquant.integrations.container.entry import command
from spectralquant.integrations.container.routes import VertexRoutes

SET = {"SQ_MODEL": "/m", "SQ_STORE": "/s", "SQ_BUDGET": "20GB"}


def test_sagemaker_gets_its_port_and_vllms_own_routes():
    words = command(SET | {"SQ_PROFILE": "/p"}, ["--max-model-len", "4096"])
    assert words[:3] == ["vllm", "serve", "/m"] and words[-2:] == ["--max-model-len", "4096"]
    assert words[words.index("--port") + 1] == "8080" and "--middleware" not in words
    section = json.loads(words[words.index("--kv-transfer-config") + 1])["kv_connector_extra_config"]["spectral"]
    assert section == {"store": "/s", "budget": "20GB", "codec": "/p"}


def test_the_cpu_build_is_started_by_its_module(monkeypatch):
    """Its `vllm` command ends with PackageNotFoundError."""
    monkeypatch.setattr(entry, "version", lambda name: "0.32.0")
    words = command(SET, [])
    assert words[:5] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", "/m"]


def test_vertex_gets_its_port_and_routes():
    words = command(SET | {"AIP_HTTP_PORT": "9000", "AIP_PREDICT_ROUTE": "/predict"}, [])
    assert words[words.index("--port") + 1] == "9000"
    module, name = words[words.index("--middleware") + 1].rsplit(".", 1)
    assert getattr(sys.modules[module], name) is VertexRoutes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SQ_MODEL": ""}, "SQ_MODEL is not set"),
        ({"SQ_STORE": ""}, "Set SQ_STORE"),
        ({"SQ_BUDGET": "lots"}, "not a size"),
    ],
)
def test_what_is_missing_or_wrong_is_said_before_vllm_starts(change, message):
    with pytest.raises(InputError, match=message):
        command(SET | change, [])


def test_the_process_ends_with_the_message():
    done = subprocess.run(
        [sys.executable, "-m", "spectralquant.integrations.container.entry"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "SQ_MODEL is not set" in done.stderr and "Traceback" not in done.stderr


async def model(scope, receive, send) -> None:
    """Answers with its path and, doubled, the number it is asked; nonsense for a request without one."""
    body = (await receive()).get("body", b"")
    assert dict(scope["headers"]).get(b"content-length") in (None, str(len(body)).encode())
    number = json.loads(body or b"{}").get("number")
    answer = json.dumps({"path": scope["path"], "twice": 2 * number}).encode() if number is not None else b"no number"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for part in (answer[:3], answer[3:]):
        await send({"type": "http.response.body", "body": part, "more_body": part == answer[:3]})


def asked(path: str, body: bytes, monkeypatch) -> bytes:
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/predict")
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/alive")
    parts = [{"type": "http.request", "body": body[:5], "more_body": True}, {"type": "http.request", "body": body[5:]}]
    if len(body) < 5:
        parts = [{"type": "http.request", "body": body}]
    sent: list[bytes] = []

    async def receive():
        return parts.pop(0)

    async def send(message):
        sent.append(message.get("body", b""))

    headers = [(b"content-length", str(len(body)).encode())] if path == "/predict" else []
    scope = {"type": "http", "path": path, "raw_path": path.encode(), "headers": headers}
    asyncio.run(VertexRoutes(model)(scope, receive, send))
    return b"".join(sent)


def test_instances_become_requests_and_answers_predictions(monkeypatch):
    answer = json.loads(
        asked("/predict", json.dumps({"instances": [{"number": 1}, {}, {"number": 4}]}).encode(), monkeypatch)
    )
    one, none, four = answer["predictions"]
    assert (one, four) == ({"path": "/invocations", "twice": 2}, {"path": "/invocations", "twice": 8})
    assert none == {"error": "no number"}


async def listening(scope, receive, send) -> None:
    """Gives up, as vLLM does, where its client goes while it works."""
    await receive()
    gone = asyncio.create_task(receive())
    await asyncio.sleep(0.01)
    answer = b"null" if gone.done() else b'{"done": true}'
    gone.cancel()
    await send({"type": "http.response.body", "body": answer})


@pytest.mark.parametrize("body", [{"instances": [{}, {}]}, {"prompt": "one"}])
@pytest.mark.parametrize("stays", [True, False])
def test_a_request_is_given_up_only_where_its_client_goes(monkeypatch, body, stays):
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/predict")
    data, sent = json.dumps(body).encode(), []

    async def ask():
        waiting = [{"type": "http.request", "body": data}]

        async def receive():
            if not waiting and stays:
                await asyncio.Event().wait()
            return waiting.pop() if waiting else {"type": "http.disconnect"}

        async def send(message):
            sent.append(message.get("body", b""))

        await VertexRoutes(listening)({"type": "http", "path": "/predict", "headers": []}, receive, send)

    asyncio.run(ask())
    answer = json.loads(b"".join(sent))
    one = {"done": True} if stays else None
    assert answer == ({"predictions": [one, one]} if "instances" in body else one)


def test_a_single_request_goes_through_as_it_is(monkeypatch):
    assert json.loads(asked("/predict", b'{"number": 3}', monkeypatch)) == {"path": "/invocations", "twice": 6}


def test_health_and_all_other_routes(monkeypatch):
    paths = []

    async def seen(scope, receive, send) -> None:
        paths.append(scope["path"])

    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/predict")
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/alive")
    for path in ("/alive", "/v1/completions"):
        asyncio.run(VertexRoutes(seen)({"type": "http", "path": path, "headers": []}, None, None))
    asyncio.run(VertexRoutes(seen)({"type": "lifespan", "path": "none"}, None, None))
    assert paths == ["/health", "/v1/completions", "none"]
