"""A vLLM server with the tier, started by the container's entry, for tests and the soak."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

START_SECONDS = 300
STOP_SECONDS = 60


class Server:
    """`with Server(environment, arguments, log) as server`: up when entered, ended by SIGTERM."""

    def __init__(self, environment: dict[str, str], arguments: list[str], log: Path) -> None:
        """environment: the entry's variables; arguments: vLLM's. The port is a free one."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        self._environment = {**os.environ, **environment, "AIP_HTTP_PORT": str(self.port), "PATH": path}
        self._command = [sys.executable, "-m", "spectralquant.integrations.container.entry", *arguments]
        self._log = log

    def __enter__(self) -> Server:
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                self.get("/health")
                return self
            except OSError:
                time.sleep(0.5)
        self.stop()
        raise RuntimeError(f"the server did not start: {self._log.read_text(errors='replace')[-3000:]}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> int:
        """End it as a host of containers does; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            return self.process.wait()

    def get(self, path: str) -> int:
        """The status of a GET."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
            return int(answer.status)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON of a POST."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return dict(json.load(answer))

    def memory(self) -> int:
        """Resident bytes of the server's processes, memory that they share counted once in each."""
        total = 0
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and os.getsid(int(entry.name)) == self.process.pid:
                    total += int((entry / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            except (OSError, ProcessLookupError):
                continue
        return total
