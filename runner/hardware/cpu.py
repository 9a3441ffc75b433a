"""The processor: what it can compute, and how many of its cores this process may use."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

from runner.api.backend import Cpu
from runner.hardware.cgroup import ControlGroup, control_groups

__all__ = ["cpu_quota", "parse_cpuinfo", "parse_sysctl", "read_cpu"]

#: Flags of ``/proc/cpuinfo`` (and macOS) that engines care about -> the name used here.
_FEATURES = {
    **dict.fromkeys(("sse3", "pni"), "sse3"),
    "ssse3": "ssse3",
    **dict.fromkeys(("sse4_1", "sse4.1"), "sse4_1"),
    **dict.fromkeys(("sse4_2", "sse4.2"), "sse4_2"),
    **dict.fromkeys(("avx", "avx1.0"), "avx"),
    "f16c": "f16c",
    "fma": "fma",
    "bmi2": "bmi2",
    "avx2": "avx2",
    "avx_vnni": "avx_vnni",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512vbmi": "avx512vbmi",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_tile": "amx_tile",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    **dict.fromkeys(("neon", "asimd"), "neon"),
    **dict.fromkeys(("asimdhp", "feat_fp16"), "fp16"),
    **dict.fromkeys(("asimddp", "feat_dotprod"), "dotprod"),
    **dict.fromkeys(("i8mm", "feat_i8mm"), "i8mm"),
    **dict.fromkeys(("bf16", "feat_bf16"), "bf16"),
    "sve": "sve",
    "sve2": "sve2",
    **dict.fromkeys(("sme", "feat_sme"), "sme"),
}

_SYSCTL = (
    "machdep.cpu.brand_string",
    "machdep.cpu.features",
    "machdep.cpu.leaf7_features",
    "hw.optional.neon",
    "hw.optional.arm",
)


def read_cpu(*, root: Path | None = None) -> Cpu:
    """Model, architecture, usable processors and features; empty where the system is silent.

    :param root: where ``proc`` and ``sys`` are, for tests; it implies Linux.
    """
    arch = platform.machine()
    model = ""
    features: tuple[str, ...] = ()
    if root is not None or sys.platform == "linux":
        model, features = parse_cpuinfo(_first_processor((root or Path("/")) / "proc/cpuinfo"))
    elif sys.platform == "darwin":
        model, features = parse_sysctl(_sysctl())
    return Cpu(
        model=model or platform.processor() or arch,
        arch=arch,
        n_usable=_n_usable(control_groups("cpu", root=root or Path("/"))),
        features=features,
    )


def parse_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """Model and features from one processor's lines of ``/proc/cpuinfo``, x86 or Arm."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        values.setdefault(name.strip().lower(), value.strip())
    model = values.get("model name", "")
    if not model and "cpu part" in values:
        model = f"Arm implementer {values.get('cpu implementer', '?')} part {values['cpu part']}"
    flags = f"{values.get('flags', '')} {values.get('features', '')}".lower().split()
    return model, _known(flags)


def parse_sysctl(text: str) -> tuple[str, tuple[str, ...]]:
    """Model and features from macOS's ``sysctl``, in its form ``name: value``."""
    model = ""
    flags: list[str] = []
    for line in text.splitlines():
        name, _, value = line.partition(": ")
        if name == "machdep.cpu.brand_string":
            model = value.strip()
        elif name.startswith("machdep.cpu."):
            flags += value.lower().split()
        elif value.strip() == "1":
            flags.append(name.rpartition(".")[2].lower())
    return model, _known(flags)


def cpu_quota(groups: list[ControlGroup]) -> float | None:
    """Processors' worth of time that the tightest group allows; None if none limits it."""
    quotas: list[float] = []
    for group in groups:
        if group.version == 2:
            quota, _, period = group.read("cpu.max").partition(" ")
        else:
            quota, period = group.read("cpu.cfs_quota_us"), group.read("cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _n_usable(groups: list[ControlGroup]) -> int:
    if sys.platform == "linux":
        n_allowed = len(os.sched_getaffinity(0))
    else:
        n_allowed = os.cpu_count() or 1
    quota = cpu_quota(groups)
    if quota is None:
        return n_allowed
    # Rounded down: a thread beyond the quota is throttled, and all others wait for it.
    return max(1, min(n_allowed, int(quota)))


def _known(flags: list[str]) -> tuple[str, ...]:
    present = {_FEATURES[flag] for flag in flags if flag in _FEATURES}
    return tuple(name for name in dict.fromkeys(_FEATURES.values()) if name in present)


def _first_processor(path: Path) -> str:
    """The lines of the first processor: with hundreds of them the whole takes long to make."""
    lines: list[str] = []
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if lines and not line.strip():
                    break
                lines.append(line)
    except OSError:
        pass
    return "".join(lines)


def _sysctl() -> str:
    """Names that this Mac does not have are complained about on stderr, which is dropped."""
    try:
        done = subprocess.run(
            ["/usr/sbin/sysctl", *_SYSCTL],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            check=False,
            timeout=2.0,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace")
