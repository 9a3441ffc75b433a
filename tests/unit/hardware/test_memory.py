"""Memory: the machine's, and the cgroups' that may be less."""

import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.hardware.memory import parse_meminfo, read_memory

GIB = 2**30

MEMINFO = """\
MemTotal:       16777216 kB
MemFree:         2097152 kB
MemAvailable:    8388608 kB
Buffers:          102400 kB
Cached:          6291456 kB
SwapTotal:       8388604 kB
SwapFree:        8388604 kB
HugePages_Total:       0
Hugepagesize:       2048 kB
"""

V2_MOUNT = "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
V1_NONE = str(2**63 - 4096)


def _machine(root: Path, *, cgroup: str, mountinfo: str) -> None:
    proc = root / "proc/self"
    proc.mkdir(parents=True)
    (root / "proc/meminfo").write_text(MEMINFO)
    (proc / "cgroup").write_text(cgroup)
    (proc / "mountinfo").write_text(mountinfo)


def _group(root: Path, path: str, **files: object) -> None:
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        controller, _, rest = name.partition("_")
        (folder / f"{controller}.{rest}").write_text(f"{value}\n")


def _total_and_available(root: Path) -> tuple[int, int]:
    memory = read_memory(root=root)
    return memory.total_bytes, memory.available_bytes


def test_meminfo_is_read_and_swap_left_out() -> None:
    assert parse_meminfo(MEMINFO) == (16 * GIB, 8 * GIB)


def test_without_a_word_on_what_is_available_it_is_free_memory_and_page_cache() -> None:
    text = MEMINFO.replace("MemAvailable", "Nothing")
    assert parse_meminfo(text) == (16 * GIB, (2097152 + 102400 + 6291456) * 1024)


@given(st.text())
def test_any_meminfo_is_survived(text: str) -> None:
    total, available = parse_meminfo(text)
    assert 0 <= available <= total


def test_without_cgroups_the_machine_counts(tmp_path: Path) -> None:
    _machine(tmp_path, cgroup="", mountinfo="")
    assert _total_and_available(tmp_path) == (16 * GIB, 8 * GIB)


def test_a_version_2_limit_counts_as_the_size_and_page_cache_as_available(tmp_path: Path) -> None:
    _machine(tmp_path, cgroup="0::/\n", mountinfo=V2_MOUNT)
    stat = f"anon 1\nactive_file {GIB // 2}\ninactive_file {GIB // 4}\nslab_reclaimable {GIB // 4}"
    _group(
        tmp_path,
        "",
        memory_max=4 * GIB,
        memory_high="max",
        memory_current=3 * GIB,
        memory_stat=stat,
    )
    assert _total_and_available(tmp_path) == (4 * GIB, 2 * GIB)


def test_no_limit_in_version_2_is_no_limit(tmp_path: Path) -> None:
    _machine(tmp_path, cgroup="0::/user.slice\n", mountinfo=V2_MOUNT)
    _group(tmp_path, "user.slice", memory_max="max", memory_high="max", memory_current=GIB)
    assert _total_and_available(tmp_path) == (16 * GIB, 8 * GIB)


def test_a_limit_of_a_parent_holds(tmp_path: Path) -> None:
    _machine(tmp_path, cgroup="0::/a.slice/b.service\n", mountinfo=V2_MOUNT)
    _group(tmp_path, "a.slice", memory_max=2 * GIB, memory_current=GIB)
    _group(tmp_path, "a.slice/b.service", memory_max=6 * GIB, memory_current=GIB // 2)
    assert _total_and_available(tmp_path) == (2 * GIB, GIB)


def test_the_high_mark_is_a_limit(tmp_path: Path) -> None:
    _machine(tmp_path, cgroup="0::/s\n", mountinfo=V2_MOUNT)
    _group(tmp_path, "s", memory_max=8 * GIB, memory_high=3 * GIB, memory_current=0)
    assert _total_and_available(tmp_path) == (3 * GIB, 3 * GIB)


def test_a_full_group_has_nothing_available(tmp_path: Path) -> None:
    _machine(tmp_path, cgroup="0::/s\n", mountinfo=V2_MOUNT)
    _group(tmp_path, "s", memory_max=GIB, memory_current=2 * GIB)
    assert _total_and_available(tmp_path) == (GIB, 0)


def test_a_limit_above_the_machine_changes_nothing(tmp_path: Path) -> None:
    _machine(tmp_path, cgroup="0::/s\n", mountinfo=V2_MOUNT)
    _group(tmp_path, "s", memory_max=64 * GIB, memory_current=GIB)
    assert _total_and_available(tmp_path) == (16 * GIB, 8 * GIB)


@pytest.mark.parametrize(
    ("cgroup", "mount_root"),
    [
        (
            "/docker/4f2a",
            "/docker/4f2a",
        ),  # the host's path, as a container without namespace sees it
        ("/", "/"),  # with a namespace
        ("/../other", "/"),  # a group above the namespace
    ],
)
def test_a_version_1_limit_of_a_container_holds(
    tmp_path: Path, cgroup: str, mount_root: str
) -> None:
    lines = f"9:name=systemd:/\n4:memory:{cgroup}\n1:cpu,cpuacct:/\n0::/\n"
    _machine(tmp_path, cgroup=lines, mountinfo=V1_MOUNT.format(root=mount_root))
    stat = f"total_active_file {GIB}\ntotal_inactive_file 0\nhierarchical_memory_limit {V1_NONE}"
    _group(
        tmp_path,
        "memory",
        memory_limit_in_bytes=4 * GIB,
        memory_usage_in_bytes=2 * GIB,
        memory_stat=stat,
    )
    assert _total_and_available(tmp_path) == (4 * GIB, 3 * GIB)


def test_a_version_1_limit_above_what_is_mounted_holds(tmp_path: Path) -> None:
    _machine(tmp_path, cgroup="4:memory:/a/b\n", mountinfo=V1_MOUNT.format(root="/a"))
    _group(
        tmp_path,
        "memory/b",
        memory_limit_in_bytes=V1_NONE,
        memory_usage_in_bytes=GIB,
        memory_stat=f"hierarchical_memory_limit {5 * GIB}",
    )
    assert _total_and_available(tmp_path) == (5 * GIB, 4 * GIB)


def test_a_mount_point_with_a_blank_is_found(tmp_path: Path) -> None:
    mount = "29 23 0:26 / /sys/fs/cgroup/my\\040groups rw - cgroup2 cgroup2 rw\n"
    _machine(tmp_path, cgroup="0::/\n", mountinfo=mount)
    _group(tmp_path, "my groups", memory_max=GIB, memory_current=0)
    assert _total_and_available(tmp_path) == (GIB, GIB)


@pytest.mark.skipif(sys.platform != "linux", reason="compares with Linux's own numbers")
def test_this_machine_has_no_more_than_its_hardware() -> None:
    memory = read_memory()
    assert 0 < memory.available_bytes <= memory.total_bytes <= psutil.virtual_memory().total
