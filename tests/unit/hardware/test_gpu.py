"""GPUs: what the driver says, and nothing when it says nothing."""

from types import SimpleNamespace
from typing import Any

import pytest

from runner.api.backend import Gpu
from runner.hardware.gpu import gpus_of, read_gpus


class DriverError(Exception):
    """Stands for ``pynvml.NVMLError``."""


class FakeDriver:
    """A driver with two GPUs, whose functions can be made to fail by name."""

    NVMLError = DriverError

    def __init__(self, *failing: str, lost: tuple[int, ...] = ()) -> None:
        self.failing = failing
        self.lost = lost
        self.n_open = 0

    def _check(self, name: str) -> None:
        if name in self.failing:
            raise DriverError(name)

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's names
        self._check("init")
        self.n_open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.n_open -= 1
        self._check("shutdown")

    def nvmlSystemGetDriverVersion(self) -> bytes:  # noqa: N802
        self._check("driver")
        return b"570.86.15"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._check("count")
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        if index in self.lost:
            raise DriverError(f"GPU {index} is lost")
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        self._check("memory")
        return SimpleNamespace(total=80 * 2**30, free=(79 - handle) * 2**30, used=2**30)

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return "NVIDIA H100 80GB HBM3"

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:  # noqa: N802
        self._check("capability")
        return 9, 0


def test_each_gpu_is_described() -> None:
    driver = FakeDriver()
    assert gpus_of(driver) == tuple(
        Gpu(
            device=f"cuda:{index}",
            name="NVIDIA H100 80GB HBM3",
            total_bytes=80 * 2**30,
            free_bytes=(79 - index) * 2**30,
            driver="570.86.15",
            capability="9.0",
        )
        for index in range(2)
    )
    assert driver.n_open == 0


@pytest.mark.parametrize("failing", ["init", "driver", "count", "memory"])
def test_a_driver_that_fails_is_no_gpu_and_is_closed(failing: str) -> None:
    driver = FakeDriver(failing)
    assert gpus_of(driver) == ()
    assert driver.n_open == 0


def test_a_lost_gpu_is_left_out_and_the_others_keep_their_index() -> None:
    assert [gpu.device for gpu in gpus_of(FakeDriver(lost=(0,)))] == ["cuda:1"]


def test_what_is_not_essential_may_fail() -> None:
    gpus = gpus_of(FakeDriver("capability", "shutdown"))
    assert [gpu.capability for gpu in gpus] == ["", ""]


def test_this_machine_answers_with_or_without_a_driver() -> None:
    assert all(gpu.total_bytes >= gpu.free_bytes > 0 for gpu in read_gpus())
