"""Telemetry of an NVIDIA GPU through NVML: the circumstances of a measurement, recorded and never set."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

_THROTTLE_REASONS = {
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
}
"""Bits of nvmlDeviceGetCurrentClocksEventReasons; idle (0x1) and display (0x100) are no reason for concern."""
MILLIWATTS = 1_000.0


def read_telemetry(pci_bus_id: str, nvml: Any = None) -> dict[str, Any]:
    """Clocks in MHz, temperature in °C, power in W, ECC, throttle reasons and driver version of one card.

    What the driver does not tell (virtual machines hide some of it) is left out; without NVML the answer is empty.
    `nvml` is the module to ask, `pynvml` unless given.
    """
    nvml = nvml or _bindings()
    if nvml is None:
        return {}
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return {}
    try:
        card = nvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id.encode())
        return _readings(nvml, card)
    except nvml.NVMLError:
        return {}
    finally:
        nvml.nvmlShutdown()


def _bindings() -> Any:
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        return None


def _readings(nvml: Any, card: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def ask(name: str, question: Callable[[], Any]) -> None:
        try:
            found[name] = question()
        except (nvml.NVMLError, AttributeError):  # not supported by this card, or by this release of the bindings
            return

    ask("sm_clock_mhz", lambda: nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_SM))
    ask("memory_clock_mhz", lambda: nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_MEM))
    ask("sm_clock_max_mhz", lambda: nvml.nvmlDeviceGetMaxClockInfo(card, nvml.NVML_CLOCK_SM))
    ask("temperature_c", lambda: nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU))
    ask("power_w", lambda: nvml.nvmlDeviceGetPowerUsage(card) / MILLIWATTS)
    ask("power_limit_w", lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(card) / MILLIWATTS)
    ask("ecc", lambda: bool(nvml.nvmlDeviceGetEccMode(card)[0]))
    ask("throttle", lambda: throttle_reasons(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(card)))
    ask("driver", lambda: _text(nvml.nvmlSystemGetDriverVersion()))
    return found


def throttle_reasons(bits: int) -> list[str]:
    """The names of the reasons that hold the clocks down right now."""
    return [name for bit, name in _THROTTLE_REASONS.items() if bits & bit]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
