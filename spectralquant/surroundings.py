"""Shields: what the caller has switched on around the library does not change what the library computes.

Autocast would round float32 products to bfloat16, as processors with matrix units do where less precision is allowed (and GPUs to
TF32); inference mode makes tensors that nothing outside it may change; a
training model drops out; another default dtype or device makes tensors that do not fit; a seed would be lost.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.checkpoint import set_checkpoint_early_stop

DEVICE_TYPES = ("cpu", "cuda")
PRODUCTS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
EXACT = ("ieee", "none")


@contextlib.contextmanager
def own_arithmetic() -> Iterator[None]:
    """Inside, float32 stays float32, in products too, and new tensors are ordinary ones: autocast and inference mode are off.

    Gradients are recorded as they were outside (in inference mode: not at all). Works as a decorator, too.
    """
    with contextlib.ExitStack() as stack:
        for kind in DEVICE_TYPES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        if not torch.compiler.is_compiling() and (_exact.users or any(p.fp32_precision not in EXACT for p in PRODUCTS)):
            stack.enter_context(_exact)
        yield


class _ExactProducts:
    """Float32 products exact to float32. What the caller allows is one setting for all threads: the first of the library's threads
    that comes notes it, the last that goes puts it back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._before: list[str] = []
        self.users = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self.users:
                self._before = [product.fp32_precision for product in PRODUCTS]
                for product in PRODUCTS:
                    product.fp32_precision = "ieee"
            self.users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.users -= 1
            if not self.users:
                for product, value in zip(PRODUCTS, self._before, strict=True):
                    product.fp32_precision = value


_exact = _ExactProducts()


@contextlib.contextmanager
def own_run(model: nn.Module) -> Iterator[None]:
    """Run `model` from inside the library as it was loaded: `own_arithmetic`, evaluation mode, nothing compiled.

    The default dtype is float32 and the default device the CPU, float32 products are exact to float32 (no TF32), and
    random numbers are the library's own. Layers that run again for their backward pass run to their end where weights are
    offloaded: accelerate puts a module's weights away after it, and a layer that stops at its last product would keep them. All of it is put
    back afterwards.
    """
    modes = [(module, module.training) for module in model.modules()]
    dtype = torch.get_default_dtype()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with contextlib.ExitStack() as stack:
        stack.enter_context(own_arithmetic())
        stack.enter_context(_exact)
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        if any(weight.is_meta for weight in model.parameters()):
            stack.enter_context(set_checkpoint_early_stop(False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        try:
            model.eval()
            torch.set_default_dtype(torch.float32)
            yield
        finally:
            torch.set_default_dtype(dtype)
            for module, training in modes:
                module.training = training
