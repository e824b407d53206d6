"""Which GPU is here: every reason there is none has a code and a hint; a known model has its shipped slug."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from kernels.backends import cuda_profile
from kernels.backends.cuda_detect import DriverFacts, check_facts, hash_uuid, identity_of, read_driver
from kernels.backends.cuda_driver import DriverCudaDevice, translate
from kernels.backends.cuda_telemetry import read_telemetry, throttle_reasons
from kernels.errors import BackendUnavailable, KernelsError
from kernels.registry import backend_for, load_profile

H200 = DriverFacts(
    name="NVIDIA H200", compute_capability=(9, 0), multiprocessors=132, memory_bytes=150_000_000_000,
    l2_bytes=62_914_560, uuid="GPU-1234", cuda_version=13000, pci_bus_id="0000:00:05.0",
)  # fmt: skip


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes the driver answer with given facts."""
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")

    def answer(facts: DriverFacts) -> None:
        cuda_profile._find.cache_clear()
        monkeypatch.setattr(cuda_profile, "read_driver", lambda: facts)

    yield answer
    cuda_profile._find.cache_clear()


def test_a_gpu_is_identified_by_what_decides_its_times() -> None:
    assert check_facts(H200, 13) == "sm_90a"
    identity = identity_of(H200)
    assert (identity.kind, identity.cores, identity.isa, identity.driver) == ("gpu", 132, ("sm_90",), "CUDA 13.0")
    assert identity == identity_of(replace(H200, uuid="GPU-another"))
    assert hash_uuid("GPU-1234") != hash_uuid("GPU-another")
    assert "1234" not in hash_uuid("GPU-1234")


@pytest.mark.parametrize(
    ("change", "code", "hint"),
    [
        ({"compute_capability": (7, 0)}, "cuda_arch_unknown", "sm_75"),
        ({"compute_capability": (13, 0)}, "cuda_arch_unknown", "sm_120a"),
        ({"cuda_version": 12080}, "cuda_driver_too_old", "cuda12"),
    ],
)
def test_a_gpu_that_cannot_be_used_says_why(change: dict[str, Any], code: str, hint: str) -> None:
    with pytest.raises(BackendUnavailable) as caught:
        check_facts(replace(H200, **change), 13)
    assert caught.value.code == code
    assert hint in caught.value.hint


def answering(error: Exception, version: object) -> dict[str, Any]:
    """Modules of a cuda-core whose device cannot be opened, on a driver that runs CUDA `version` (or raises)."""

    def refuse(index: int) -> None:
        raise error

    def cuDriverGetVersion() -> tuple[int, object]:
        if isinstance(version, Exception):
            raise version
        return 0, version

    driver = SimpleNamespace(cuDriverGetVersion=cuDriverGetVersion)
    bindings = SimpleNamespace(__version__="13.0.1", driver=driver)
    core = SimpleNamespace(Device=refuse)
    return {
        "cuda": SimpleNamespace(bindings=bindings, core=core), "cuda.bindings": bindings,
        "cuda.bindings.driver": driver, "cuda.core": core,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "version", "code", "hint"),
    [
        (RuntimeError("DynamicLibNotFoundError: libcuda.so.1"), RuntimeError("libcuda"), "cuda_no_driver", "install"),
        (RuntimeError("CUDA_ERROR_NO_DEVICE"), 13000, "cuda_no_device", "nvidia-smi"),
        (RuntimeError("CUDA_ERROR_UNKNOWN"), 0, "cuda_no_device", "nvidia-smi"),
        (RuntimeError('Function "cuCtxGetDevice_v2" not found'), 12040, "cuda_driver_too_old", "cuda12"),
    ],
    ids=["no driver", "no device", "no version", "too old"],
)
def test_a_device_that_cannot_be_opened_says_why(
    monkeypatch: pytest.MonkeyPatch, error: Exception, version: object, code: str, hint: str
) -> None:
    for name, module in answering(error, version).items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(BackendUnavailable) as caught:
        read_driver()
    assert caught.value.code == code
    assert hint in caught.value.hint


def test_a_newer_sibling_runs_what_is_compiled_for_itself() -> None:
    assert check_facts(replace(H200, compute_capability=(12, 1)), 13) == "sm_121a"


def test_a_machine_has_a_gpu_or_one_reason_why_not() -> None:
    found = cuda_profile._find()
    if isinstance(found, BackendUnavailable):
        assert found.code in ("cuda_no_driver", "cuda_no_device", "cuda_not_installed", "no_nvrtc")
        assert found.hint
    else:
        assert found[0].multiprocessors > 0


def test_a_known_model_has_its_shipped_slug_and_is_measurable(gpu: Any) -> None:
    gpu(H200)
    for name in ("cuda-local", "auto", "h200"):
        profile = load_profile(name)
        assert (profile.slug, profile.measurable_here, profile.device.cores) == ("h200", True, 132)
        assert profile.peaks["int8"].source
    assert load_profile("h100").measurable_here is False


def test_an_unknown_model_is_local_and_a_similar_name_is_no_match(gpu: Any) -> None:
    gpu(replace(H200, name="NVIDIA L40", compute_capability=(8, 9)))
    assert load_profile("auto").slug == "cuda-local"
    gpu(replace(H200, name="NVIDIA A100-SXM4-80GB", compute_capability=(8, 0)))
    assert load_profile("auto").slug == "a100"


def test_auto_without_a_gpu_is_this_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_profile._find.cache_clear()

    def none() -> DriverFacts:
        raise BackendUnavailable("there is no NVIDIA driver on this machine", code="cuda_no_driver")

    monkeypatch.setattr(cuda_profile, "read_driver", none)
    assert load_profile("auto").slug == "cpu-local"
    assert load_profile("h200").measurable_here is False
    with pytest.raises(BackendUnavailable) as caught:
        load_profile("cuda-local")
    assert caught.value.code == "cuda_no_driver"
    cuda_profile._find.cache_clear()


def test_a_torch_without_cuda_is_named(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(H200)
    monkeypatch.setattr("kernels.backends.cuda_driver.read_driver", lambda index: H200)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(BackendUnavailable) as caught:
        backend_for(load_profile("cuda-local"))
    assert caught.value.code == "cuda_torch_missing"
    assert issubclass(DriverCudaDevice, object)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("CUDA out of memory. Tried to allocate 2 GiB", "device_out_of_memory"),
        ("CUDA_ERROR_OUT_OF_MEMORY", "device_out_of_memory"),
        ("CUDA error: an illegal memory access was encountered", "device_lost"),
        ("CUDA_ERROR_LAUNCH_FAILED", "device_lost"),
        ("CUDA error: the launch timed out and was terminated", "device_lost"),
        ("CUDA error: operation not supported on global/shared address space", "device_lost"),
        ("CUDA error: invalid program counter", "device_lost"),
        ("CUDA error: hardware stack error", "device_lost"),
        ("CUDA_ERROR_INVALID_VALUE", "op_failed"),
    ],
)
def test_errors_of_the_driver_are_sorted_by_what_can_go_on(said: str, code: str) -> None:
    error: KernelsError = translate(RuntimeError(said), "launch")
    assert error.code == code
    assert error.hint


class Nvml(SimpleNamespace):
    """A driver that tells clocks and hides power, as virtual machines do."""

    NVMLError = RuntimeError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None: ...

    def nvmlDeviceGetHandleByPciBusId(self, bus: bytes) -> str:
        return bus.decode()

    def nvmlDeviceGetClockInfo(self, card: str, which: int) -> int:
        return {1: 1980, 2: 3201}[which]

    def nvmlDeviceGetTemperature(self, card: str, which: int) -> int:
        return 41

    def nvmlDeviceGetPowerUsage(self, card: str) -> int:
        raise self.NVMLError("not supported")

    def nvmlDeviceGetEccMode(self, card: str) -> list[int]:
        return [1, 1]

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, card: str) -> int:
        return 0x4 | 0x1

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"580.159.04"


def test_circumstances_are_what_the_driver_tells() -> None:
    assert read_telemetry("0000:00:05.0", Nvml()) == {
        "sm_clock_mhz": 1980,
        "memory_clock_mhz": 3201,
        "temperature_c": 41,
        "ecc": True,
        "throttle": ["power cap"],
        "driver": "580.159.04",
    }
    assert throttle_reasons(0x1) == []


def test_a_driver_that_does_not_answer_leaves_circumstances_empty() -> None:
    class Silent(Nvml):
        def nvmlInit(self) -> None:
            raise self.NVMLError("not loaded")

    assert read_telemetry("0000:00:05.0", Silent()) == {}
