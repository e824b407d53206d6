"""This CPU's identity: real figures, found twice alike, and the saturation rule by instruction set."""

from __future__ import annotations

import os

import pytest

from kernels import cpu
from kernels.device_identity import DeviceIdentity


def test_identity_is_stable_and_round_trips() -> None:
    here = cpu.this_cpu()
    cpu.this_cpu.cache_clear()
    assert cpu.this_cpu() == here
    assert DeviceIdentity.from_json(here.to_json()) == here
    assert here.kind == "cpu"
    assert here.name
    assert 1 <= here.cores <= (os.cpu_count() or 1)
    assert here.memory_bytes >= 1 << 30
    assert set(here.isa) <= set(cpu.KERNEL_DECIDING_FLAGS)
    assert here.name in str(here)


@pytest.mark.parametrize(
    ("system", "isa", "saturates"),
    [
        ("Linux x86_64", ("avx2",), True),
        ("Linux x86_64", ("avx2", "avx512f"), True),
        ("Linux x86_64", ("avx2", "avx_vnni"), False),
        ("Linux x86_64", ("avx512f", "avx512_vnni"), False),
        ("Windows AMD64", ("avx2",), True),
        ("Linux aarch64", ("asimd",), False),
        ("Darwin arm64", (), False),
    ],
)
def test_int8_saturates_only_on_x86_without_vnni(system: str, isa: tuple[str, ...], saturates: bool) -> None:
    device = DeviceIdentity("cpu", "some", 4, 1 << 33, isa=isa, os=system)
    assert cpu.saturates_in_int8(device) is saturates


def test_without_proc_the_cpuinfo_package_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    import cpuinfo

    asked = {"brand_raw": "Some CPU", "flags": ["avx2", "avx_vnni"]}
    monkeypatch.setattr(cpuinfo, "get_cpu_info", lambda: asked)
    monkeypatch.setattr(cpu.Path, "is_file", lambda self: False)
    cpu.this_cpu.cache_clear()
    try:
        assert cpu.this_cpu().name == "Some CPU"
        assert cpu.this_cpu().isa == ("avx2", "avx_vnni")
    finally:
        monkeypatch.undo()
        cpu.this_cpu.cache_clear()


def test_circumstances_are_figures_or_zero() -> None:
    assert cpu.load_average() >= 0
    assert cpu.frequency_mhz() >= 0
