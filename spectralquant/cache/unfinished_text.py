"""A generation that can be gone on with: the cache, the tokens so far and the random numbers' state, now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from spectralquant.cache.spectral_cache import SpectralCache
from spectralquant.errors import InputError
from spectralquant.files import read_json, write_json
from spectralquant.models.load import LoadedModel
from spectralquant.profile.model import CalibrationProfile

FIRST_AFTER_S = 5.0
COST_SHARE = 0.05
STATE = "text.json"


class UnfinishedText(BaseStreamer):
    """Follows `generate` token by token; between two steps a cache is whole, so that it can be saved.

    Saving takes at most a twentieth of the time. folder: where; None saves nothing. ids `[1, T]`: prompt and text so far; done
    of `total` new tokens are in it.
    """

    def __init__(
        self,
        folder: Path | None,
        cache: SpectralCache,
        ids: Tensor,
        total: int,
        done: int,
        progress: Callable[[str, int, int], None],
    ) -> None:
        self.folder, self.cache, self.total, self.progress = folder, cache, total, progress
        self.ids, self.done = ids[0].tolist(), done
        self._given = False
        self._next = time.perf_counter() + FIRST_AFTER_S

    def put(self, value: Tensor) -> None:
        """Called by `generate`: first with the prompt, then with every token, before it is fed back."""
        if not self._given:
            self._given = True
            self.progress("generating", self.done, self.total)
            return
        self.ids += value.flatten().tolist()
        self.done += 1
        self.progress("generating", self.done, self.total)
        if self.folder is not None and time.perf_counter() > self._next:
            self._save(self.folder)

    def end(self) -> None:
        """Called by `generate` at its end."""
        self.progress("generating", self.total, self.total)

    def _save(self, folder: Path) -> None:
        begin = time.perf_counter()
        name = f"cache-{len(self.ids)}.safetensors"
        self.cache.save(folder / name)
        state = {"cpu": torch.get_rng_state().tolist()}
        if self.cache.binding.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.cache.binding.device).tolist()
        write_json(folder / STATE, {"ids": self.ids, "cache": name, "random": state})
        for old in folder.glob("cache-*.safetensors"):
            if old.name != name:
                old.unlink()
        now = time.perf_counter()
        self._next = now + max(FIRST_AFTER_S, (now - begin) / COST_SHARE)


def saved_text(
    folder: Path | None, loaded: LoadedModel, profile: CalibrationProfile | None
) -> tuple[SpectralCache, list[int]] | None:
    """The cache and all tokens of an interrupted generation, and the random numbers as they were; None where nothing is saved.

    Raises:
        InputError: what was saved is damaged.
    """
    if folder is None or not (folder / STATE).is_file():
        return None
    state = read_json(folder / STATE, "The unfinished text")
    try:
        ids, random = [int(i) for i in state["ids"]], state["random"]
        cache = SpectralCache.load(folder / state["cache"], loaded.model, profile)
        torch.set_rng_state(torch.tensor(random["cpu"], dtype=torch.uint8))
        if "cuda" in random:
            torch.cuda.set_rng_state(torch.tensor(random["cuda"], dtype=torch.uint8), loaded.device)
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"The unfinished text in {folder} is damaged ({error}). Run without --resume.") from error
    return cache, ids
