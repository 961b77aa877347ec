"""What the entry point `vllm.general_plugins` runs in every process of vLLM: names become known, nothing is loaded."""

from __future__ import annotations

from spectralquant.integrations.vllm.hot.select import select_hot_backend

CONNECTOR = "SpectralConnector"
SPEC = "SpectralOffloadingSpec"
TIER = "spectral"
PACKAGE = "spectralquant.integrations.vllm"


def register() -> None:
    """Make `SpectralConnector` known to vLLM, and the parts that it is made of. vLLM may call this more than once."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
    from vllm.v1.kv_offload.factory import OffloadingSpecFactory
    from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

    select_hot_backend()
    if CONNECTOR not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(CONNECTOR, f"{PACKAGE}.connector", CONNECTOR)
    if SPEC not in OffloadingSpecFactory._registry:
        OffloadingSpecFactory.register_spec(SPEC, f"{PACKAGE}.cpu_spec", SPEC)
    if TIER not in SecondaryTierFactory._registry:
        SecondaryTierFactory.register_tier(TIER, f"{PACKAGE}.tier", "SpectralTier")
