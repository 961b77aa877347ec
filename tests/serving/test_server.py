"""The container's entry against the CPU engine: the routes of SageMaker and Vertex AI, and a store that outlives the server."""

from __future__ import annotations

import pytest

from research.serving.server import Server
from spectralquant.integrations.serve_check.machine import engine_arguments
from spectralquant.models.builtin.folder import builtin_folder

pytestmark = [pytest.mark.slow, pytest.mark.model]
PROMPT = list(range(1000, 1140))
OPTIONS = ["--max-model-len", "512", "--enforce-eager", "--dtype", "bfloat16", "--enable-prompt-tokens-details"]


def test_both_hosts_routes_answer_and_a_new_server_restores(tmp_path):
    engine_arguments(1, True)
    environment = {
        "SQ_MODEL": str(builtin_folder("builtin:smollm2-135m")),
        "SQ_STORE": str(tmp_path / "store"),
        "SQ_BUDGET": "1GB",
        "AIP_HEALTH_ROUTE": "/alive",
        "AIP_PREDICT_ROUTE": "/predict",
    }
    request = {"prompt": PROMPT, "max_tokens": 6, "temperature": 0}
    with Server(environment, OPTIONS, tmp_path / "one.log") as server:
        assert server.get("/ping") == server.get("/alive") == 200
        first = server.post("/invocations", request)
        both = server.post("/predict", {"instances": [request, {"nonsense": 1}]})["predictions"]
        assert both[0]["choices"][0]["text"] == first["choices"][0]["text"] and "error" in both[1]
        assert server.post("/predict", request)["choices"][0]["text"] == first["choices"][0]["text"]
        assert server.stop() == 0
    with Server(environment, OPTIONS, tmp_path / "two.log") as server:
        again = server.post("/invocations", request)
    assert again["choices"][0]["text"] == first["choices"][0]["text"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 128
