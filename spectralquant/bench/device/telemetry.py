"""`telemetry`: what NVML tells of the device's state."""

from __future__ import annotations

from typing import Any

# Clock event reasons that make a timing worthless (nvml.h): hardware slowdown, software and hardware thermal, power brake.
THROTTLED = {0x8: "hardware slowdown", 0x20: "thermal (software)", 0x40: "thermal (hardware)", 0x80: "power brake"}
NOTED = {0x4: "power cap"}


def telemetry(index: int = 0) -> dict[str, Any] | None:
    """Clocks (MHz), power (W), temperature (°C), memory (bytes) and reasons for low clocks; None without NVML."""
    try:
        import pynvml as nvml

        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
    except Exception:  # NVML raises its own errors, and there may be no driver at all
        return None
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    reasons = _or_none(nvml.nvmlDeviceGetCurrentClocksEventReasons, handle) or 0
    return {
        "sm_mhz": _or_none(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
        "memory_mhz": _or_none(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
        "power_w": (_or_none(nvml.nvmlDeviceGetPowerUsage, handle) or 0) / 1000,
        "temperature_c": _or_none(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        "memory_used": memory.used,
        "memory_total": memory.total,
        "throttled": [name for bit, name in THROTTLED.items() if reasons & bit],
        "noted": [name for bit, name in NOTED.items() if reasons & bit],
    }


def _or_none(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception:  # a counter that this device does not have
        return None


def verdict(before: dict[str, Any] | None, after: dict[str, Any] | None) -> dict[str, Any]:
    """Whether timings between two readings can be trusted: {"conclusive": bool, "why": …}."""
    if before is None or after is None:
        return {"conclusive": False, "why": "NVML tells nothing of clocks and throttling here"}
    throttled = sorted({*before["throttled"], *after["throttled"]})
    if throttled:
        return {"conclusive": False, "why": f"the device throttled: {', '.join(throttled)}"}
    return {"conclusive": True, "why": "no throttling seen"}
