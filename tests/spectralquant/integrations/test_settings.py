"""Settings of the tier: what is wrong is refused before the engine starts."""

import pytest

from spectralquant.errors import InputError
from spectralquant.integrations.vllm.settings import TierSettings, complete, read_settings

GOOD = {"store": "/tmp/x", "budget": "20MB"}


def test_sizes_are_read_and_the_rest_has_defaults():
    assert read_settings({"spectral": GOOD}) == TierSettings("/tmp/x", 20_000_000)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (None, "needs a section"),
        ({"store": "/tmp/x"}, "budget is missing"),
        ({"budget": 5}, "store is missing"),
        (GOOD | {"codek": "lossless"}, "Did you mean 'codec'"),
        (GOOD | {"budget": 0}, "positive whole number"),
        (GOOD | {"budget": "much"}, "not a size"),
        (GOOD | {"threads": True}, "positive whole number"),
        (GOOD | {"codec": 3}, "is a text"),
    ],
)
def test_wrong_settings_are_refused(section, message):
    with pytest.raises(InputError, match=message):
        read_settings({"spectral": section} if section is not None else {})


def test_what_vllm_needs_is_filled_in_and_what_is_given_stays():
    cpu, gpu, own = ({"spectral": GOOD} for _ in range(3))
    complete(cpu, gpu=False)
    complete(gpu, gpu=True)
    assert (cpu["spec_name"], cpu["block_size"]) == ("SpectralOffloadingSpec", 128)
    assert (gpu["spec_name"], gpu["secondary_tiers"]) == ("TieringOffloadingSpec", [{"type": "spectral"}])
    own |= {"blocks_per_chunk": 4, "cpu_bytes_to_use": 5}
    complete(own, gpu=True)
    assert "block_size" not in own and own["cpu_bytes_to_use"] == 5
