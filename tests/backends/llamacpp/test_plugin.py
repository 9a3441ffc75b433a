"""The hooks, without a model."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest
from runner_llamacpp import plugin
from runner_llamacpp.options import LlamaCppOptions
from runner_llamacpp.threads import usable_cpus

from runner.api import Cpu, EngineProbe, Gpu, Machine, MachineMemory


def _machine(arch: str = "x86_64", *features: str, gpus: tuple[Gpu, ...] = ()) -> Machine:
    return Machine(
        os="linux",
        cpu=Cpu(model="test", arch=arch, n_usable=4, features=features),
        memory=MachineMemory(total_bytes=2**34, available_bytes=2**33),
        gpus=gpus,
    )


def test_importing_the_plugin_loads_no_engine() -> None:
    code = (
        "import sys, runner_llamacpp.plugin as plugin; plugin.runner_backend_info(); "
        "sys.exit(any(name.split('.')[0] in ('llama_cpp', 'numpy') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_declaration() -> None:
    info = plugin.runner_backend_info()
    assert (info.name, info.aliases, info.formats) == ("llama.cpp", ("llamacpp",), ("gguf",))
    assert set(info.modes) == {"chat", "completion", "embedding"}
    assert info.options() == LlamaCppOptions()


def test_the_probe_names_version_build_and_devices() -> None:
    probe = plugin.runner_probe_engine()
    assert probe.version.startswith("llama-cpp-python 0.3.")
    assert "libllama" in probe.build
    assert "cpu" in probe.devices


def test_support_names_features_and_devices() -> None:
    probe = EngineProbe(version="1", devices=("cpu",))
    support = plugin.runner_hardware_support(_machine("x86_64", "avx2", "avx512f"), probe)
    assert support.is_supported
    assert support.devices == ("cpu",)
    assert "avx512f, avx2" in support.reason


def test_an_unknown_processor_is_not_supported() -> None:
    probe = EngineProbe(version="1", devices=("cpu",))
    support = plugin.runner_hardware_support(_machine("riscv64"), probe)
    assert not support.is_supported
    assert "riscv64" in support.reason


def test_a_gpu_that_is_not_used_is_mentioned() -> None:
    gpu = Gpu(device="cuda:0", name="card", total_bytes=1, free_bytes=1)
    machine = _machine("x86_64", gpus=(gpu,))
    plain = plugin.runner_hardware_support(machine, EngineProbe(version="1", devices=("cpu",)))
    assert "cannot use the GPU" in plain.reason
    probe = EngineProbe(version="1", devices=("cuda:0", "cpu"))
    assert "cuda:0 seen" in plugin.runner_hardware_support(machine, probe).reason


@pytest.mark.parametrize(
    "bad",
    [{"threads": 0}, {"batch_size": 1}, {"kv_type": "q2"}, {"flash_attention": "maybe"}, {"x": 1}],
)
def test_bad_options_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(bad, LlamaCppOptions)


def test_a_quota_limits_the_threads(tmp_path: pytest.TempPathFactory) -> None:
    quota = tmp_path / "cpu.max"  # type: ignore[operator]  # pytest's tmp_path is a Path
    quota.write_text("max 100000\n")
    n_all = usable_cpus(quota)
    assert n_all >= 1
    quota.write_text("50000 100000\n")
    assert usable_cpus(quota) == 1
    quota.write_text("garbage")
    assert usable_cpus(quota) == n_all
