"""Every kernel compiles for a Hopper GPU, whether or not there is one here."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("compile_for_gpu.py")
SHARED_MEMORY = 227 * 1024
KERNELS = {
    "prepare_kernel",
    "decode_kernel",
    "reduce_kernel",
    "scan_kernel",
    "gather_kernel",
    "reconstruct_kernel",
    "compress_kernel",
    "slots_kernel",
    "split_kernel",
    "merge_kernel",
    "rans_decode_kernel",
    "rans_encode_kernel",
    "rans_escape_kernel",
    "rans_words_kernel",
    "dequantize_kernel",
    "escaped_kernel",
    "quantize_kernel",
    "energy_kernel",
    "store_rows_kernel",
    "gather_rows_kernel",
    "received_kernel",
}


def test_kernels_compile_for_hopper(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    path = os.pathsep.join(filter(None, (str(SCRIPT.parent), os.environ.get("PYTHONPATH"))))
    environment |= {"PYTHONPATH": path, "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {f["kernel"] for f in found} == KERNELS
    assert max(f["shared"] for f in found) <= SHARED_MEMORY
