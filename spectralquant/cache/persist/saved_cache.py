"""`SavedCache`: a cache that can be saved, loaded, pickled and copied, in the middle of a generation too."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from spectralquant.cache.binding import model_facts
from spectralquant.cache.passes.cache_passes import CachePasses
from spectralquant.cache.persist.restored import require_options, require_whole, todays_options
from spectralquant.cache.persist.snapshot import CacheSnapshot, restore_tokens, saved_model, take_snapshot
from spectralquant.cache.persist.snapshot_file import restoring
from spectralquant.cache.pool import SpectralBufferPool
from spectralquant.profile.model import CalibrationProfile


class SavedCache(CachePasses):
    """The part of a `SpectralCache` that keeps it as it is, every tier's codes unchanged.

    A cache is made again by calling its class with a model, a profile, a pool and the options that were saved.
    """

    profile: CalibrationProfile | None
    pool: SpectralBufferPool

    def save(self, path: str | Path) -> None:
        """Write the cache as it is (every tier's codes unchanged), atomically."""
        self._snapshot().save(path)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module, profile: CalibrationProfile | None = None) -> Self:
        """Read what `save` wrote.

        Raises:
            InputError: not such a file. ProfileError: it was saved with another profile.
        """
        snapshot = CacheSnapshot.load(path)
        with restoring(path):
            snapshot.facts["options"] = todays_options(snapshot.facts["options"])
            require_options(snapshot.facts["options"])
            cache = cls._restored(snapshot, model, profile)
            require_whole(cache.state, cache.own_tensors(), cache.binding.model)
        return cache

    def __reduce__(self):
        return _unpickle, (type(self), self._snapshot(), self.profile)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy that shares profile, model, pool and the blocks, which never change."""
        snapshot = self._snapshot(share_blocks=True)
        return self._restored(snapshot, self.binding.model, self.profile, pool=self.pool)

    def _snapshot(self, *, share_blocks: bool = False) -> CacheSnapshot:
        """The cache as it is; background work is finished first."""
        self.recover()
        self.groups.settle()
        self.report.kept = True
        facts = {
            "options": self.snapshot_options(),
            "model": self.binding.weights_sha256,
            "windows": list(self.geometry.windows),
            "of": list(model_facts(self.binding.model)),
            "profile": None if self.profile is None else self.profile.id.hex(),
        }
        return take_snapshot(self.state, self.groups, self.own_tensors(), facts, share_blocks=share_blocks)

    @classmethod
    def _restored(
        cls,
        snapshot: CacheSnapshot,
        model: nn.Module | None,
        profile: CalibrationProfile | None,
        pool: SpectralBufferPool | None = None,
    ) -> Self:
        model = saved_model(snapshot, model, profile)
        cache = cls(model, profile, pool=pool, **snapshot.facts["options"])
        cache.take_own_tensors(restore_tokens(snapshot, cache.state, cache.groups, cache.binding.device))
        cache.report.note_held(cache.state.total, cache.state.coded_tokens)
        return cache

    def snapshot_options(self) -> dict[str, Any]:
        """Keyword arguments that make an equal, empty cache."""
        return dict(self.options)

    def take_own_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `own_tensors` gave."""


def _unpickle(kind: type[SavedCache], snapshot: CacheSnapshot, profile: CalibrationProfile | None) -> SavedCache:
    return kind._restored(snapshot, None, profile)
