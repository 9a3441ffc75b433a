"""The processor: features by one name on every system, and only what may be used."""

import os
import platform
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.hardware.cgroup import ControlGroup
from runner.hardware.cpu import cpu_quota, parse_cpuinfo, parse_sysctl, read_cpu

XEON = """\
processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 106
model name\t: Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz
flags\t\t: fpu vme sse sse2 pni ssse3 fma sse4_1 sse4_2 avx f16c bmi2 avx2 avx512f avx512_vnni
bugs\t\t: spectre_v1
"""
GRAVITON = """\
processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm aes sha2 crc32 fphp asimdhp asimddp sve i8mm bf16
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""
MAC_ARM = """\
machdep.cpu.brand_string: Apple M2 Pro
hw.optional.neon: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_SME: 0
"""
MAC_INTEL = """\
machdep.cpu.brand_string: Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz
machdep.cpu.features: FPU SSE3 SSSE3 FMA SSE4.1 SSE4.2 AVX1.0 F16C
machdep.cpu.leaf7_features: BMI2 AVX2
"""


@pytest.mark.parametrize(
    ("parse", "text", "model", "features"),
    [
        (
            parse_cpuinfo,
            XEON,
            "Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz",
            "sse3 ssse3 sse4_1 sse4_2 avx f16c fma bmi2 avx2 avx512f avx512_vnni",
        ),
        (
            parse_cpuinfo,
            GRAVITON,
            "Arm implementer 0x41 part 0xd40",
            "neon fp16 dotprod i8mm bf16 sve",
        ),
        (parse_sysctl, MAC_ARM, "Apple M2 Pro", "neon dotprod i8mm"),
        (
            parse_sysctl,
            MAC_INTEL,
            "Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz",
            "sse3 ssse3 sse4_1 sse4_2 avx f16c fma bmi2 avx2",
        ),
    ],
    ids=["xeon", "graviton", "mac-arm", "mac-intel"],
)
def test_features_have_one_name_on_every_system(
    parse: type, text: str, model: str, features: str
) -> None:
    assert parse(text) == (model, tuple(features.split()))


@given(st.text())
def test_any_text_is_survived(text: str) -> None:
    assert parse_cpuinfo(text)
    assert parse_sysctl(text)


def _version_2(path: Path, text: str) -> ControlGroup:
    path.mkdir(parents=True, exist_ok=True)
    (path / "cpu.max").write_text(text)
    return ControlGroup(2, path)


def _version_1(path: Path, quota: int, period: int) -> ControlGroup:
    path.mkdir(parents=True, exist_ok=True)
    (path / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (path / "cpu.cfs_period_us").write_text(f"{period}\n")
    return ControlGroup(1, path)


def test_the_tightest_quota_counts(tmp_path: Path) -> None:
    groups = [
        _version_2(tmp_path / "a/b", "max 100000\n"),
        _version_2(tmp_path / "a", "150000 100000\n"),
        _version_1(tmp_path / "c", 400000, 100000),
        ControlGroup(2, tmp_path / "none"),
    ]
    assert cpu_quota(groups) == 1.5


def test_no_quota_is_none(tmp_path: Path) -> None:
    groups = [_version_1(tmp_path / "a", -1, 100000), _version_2(tmp_path / "b", "max 100000")]
    assert cpu_quota(groups) is None
    assert cpu_quota([]) is None


@pytest.mark.parametrize(("quota", "n_usable"), [("50000", 1), ("10000000", None)])
def test_the_quota_bounds_the_usable_processors(
    tmp_path: Path, quota: str, n_usable: int | None
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text(XEON + "\n" + XEON.replace("8370C", "other"))
    (tmp_path / "proc/self/cgroup").write_text("0::/x\n")
    (tmp_path / "proc/self/mountinfo").write_text("29 23 0:26 / /cg rw - cgroup2 cgroup2 rw\n")
    _version_2(tmp_path / "cg/x", f"{quota} 100000\n")
    cpu = read_cpu(root=tmp_path)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert cpu.n_usable == (n_usable or allowed)
    assert "8370C" in cpu.model
    assert cpu.arch == platform.machine()


def test_nothing_readable_still_gives_a_processor(tmp_path: Path) -> None:
    cpu = read_cpu(root=tmp_path)
    assert cpu.n_usable >= 1
    assert cpu.model
    assert cpu.features == ()
