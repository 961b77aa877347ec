"""Nominal figures of devices, for predictions on a machine without them. Sources: the makers' data sheets."""

from __future__ import annotations

from dataclasses import dataclass

from spectralquant.errors import InputError, did_you_mean


@dataclass(frozen=True)
class DeviceModel:
    """Nominal: bandwidth in TB/s, dense 16-bit matrix rate in TFLOP/s, memory in bytes, multiprocessors, share of bandwidth a copy
    reaches."""

    name: str
    tb_per_s: float
    tflops: float
    memory: int
    processors: int
    copy_share: float = 0.9


GB = 10**9
DEVICES = {
    d.name: d
    for d in (
        DeviceModel("h100", 3.35, 989, 80 * GB, 132),
        DeviceModel("h200", 4.8, 989, 141 * GB, 132),
        DeviceModel("a100", 2.04, 312, 80 * GB, 108),
        DeviceModel("l40s", 0.864, 362, 48 * GB, 142),
        DeviceModel("rtx4090", 1.008, 165, 24 * GB, 128),
    )
}


def parse_device(name: str) -> DeviceModel:
    """A device of `DEVICES`.

    Raises:
        InputError: there is none of that name.
    """
    if name not in DEVICES:
        raise InputError(
            f"There is no device model {name!r}; there are {', '.join(DEVICES)}.{did_you_mean(name, DEVICES)}"
        )
    return DEVICES[name]


def device_named(name: str | None) -> DeviceModel | None:
    """The device model of a driver's name, as "NVIDIA H100 80GB HBM3", or None."""
    return next((model for key, model in DEVICES.items() if key in (name or "").lower().replace(" ", "")), None)
