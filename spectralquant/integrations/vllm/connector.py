"""`SpectralConnector`: vLLM's offloading connector, told how keys and values are laid out."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector
from vllm.platforms import current_platform

from spectralquant.integrations.vllm.facts import facts_of, known
from spectralquant.integrations.vllm.idle import AWAITED
from spectralquant.integrations.vllm.plugin import register
from spectralquant.integrations.vllm.settings import complete
from spectralquant.integrations.vllm.tiered.ended import remember_ended


class SpectralConnector(OffloadingConnector):
    """Stores prefixes and restores them: on a GPU by a tier behind vLLM's own in CPU memory, on the CPU build directly."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        """See `OffloadingConnector`.

        Raises:
            InputError: settings are wrong, or this engine's cache cannot be stored; the message says what would help.
        """
        register()
        _complete(vllm_config)
        with known(facts_of(vllm_config, kv_cache_config, _layout(type(self), vllm_config, kv_cache_config))):
            super().__init__(vllm_config, role, kv_cache_config)
        if self.connector_scheduler is not None:
            remember_ended(self.connector_scheduler.manager)

    @property
    def prefer_cross_layer_blocks(self) -> bool:
        """No: pages are read a layer at a time."""
        return False

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        """See `OffloadingConnector`; a step with nothing to compute, and nothing to load, sleeps while prefixes are read."""
        meta = super().build_connector_meta(scheduler_output)
        if not scheduler_output.total_num_scheduled_tokens and not getattr(meta, "load_jobs", None):
            AWAITED.give_time()
        return meta

    @classmethod
    def build_prom_metrics(cls, vllm_config: Any, *arguments: Any) -> Any:
        """See `OffloadingConnector`; the frontend's process asks before any connector was built."""
        register()
        _complete(vllm_config)
        return super().build_prom_metrics(vllm_config, *arguments)


def _complete(vllm_config: Any) -> None:
    complete(vllm_config.kv_transfer_config.kv_connector_extra_config, gpu=not current_platform.is_cpu())


def _layout(connector: type[OffloadingConnector], vllm_config: Any, kv_cache_config: Any) -> str:
    if current_platform.is_cpu():
        return ""
    named = getattr(kv_cache_config, "kv_cache_layout", None)
    if named:
        return str(named)
    from vllm import envs

    return envs.VLLM_KV_CACHE_LAYOUT or connector.get_required_kvcache_layout(vllm_config) or "NHD"
