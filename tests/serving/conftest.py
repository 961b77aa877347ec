"""Tests that need an engine: collected where vLLM is installed (`make test-serving`), and there alone."""

import os
from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("vllm") else ["test_*.py"]
os.environ.setdefault("PYTHONHASHSEED", "0")
