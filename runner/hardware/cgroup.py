"""The control groups this process is in, which may allow it less than the machine has.

Containers see the host's ``/proc/meminfo`` and processors; their limits are in files of the cgroup
file system, of version 1 or 2 or both at once, in their own group or in any group above it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

__all__ = ["ControlGroup", "control_groups", "read_text"]

_OCTAL = re.compile(r"\\([0-7]{3})")


class ControlGroup(NamedTuple):
    """One group that holds this process for one controller."""

    version: int
    path: Path

    def read(self, name: str) -> str:
        """The contents of one of its files, ``""`` if there is none."""
        return read_text(self.path / name)


class _Mount(NamedTuple):
    version: int
    #: The group that the mount point shows.
    root: str
    point: str


def read_text(path: Path) -> str:
    """The contents of a small file of the kernel's, ``""`` if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def control_groups(controller: str, *, root: Path = Path("/")) -> list[ControlGroup]:
    """The groups that limit this process for ``controller``, innermost first, parents included.

    :param controller: ``memory`` or ``cpu``.
    :param root: where ``proc`` and ``sys`` are, for tests.
    """
    members = _memberships(read_text(root / "proc/self/cgroup"), controller)
    mounts = _mounts(read_text(root / "proc/self/mountinfo"), controller)
    groups: list[ControlGroup] = []
    for mount in mounts:
        if (group := members.get(mount.version)) is not None:
            top = root / mount.point.lstrip("/")
            inner = top / _below(group, mount.root)
            chain = [inner, *inner.parents]
            groups += [ControlGroup(mount.version, path) for path in chain[: chain.index(top) + 1]]
    return groups


def _memberships(proc_cgroup: str, controller: str) -> dict[int, str]:
    """cgroup version -> the group's path, from ``/proc/self/cgroup``."""
    found: dict[int, str] = {}
    for line in proc_cgroup.splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if hierarchy == "0" and not controllers:
            found[2] = group
        elif controller in controllers.split(","):
            found[1] = group
    return found


def _mounts(mountinfo: str, controller: str) -> list[_Mount]:
    """Where the hierarchies that may limit ``controller`` are mounted."""
    found: list[_Mount] = []
    for line in mountinfo.splitlines():
        fields, _, tail = line.partition(" - ")
        parts, kind = fields.split(), tail.split()
        if len(parts) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            found.append(_Mount(2, _unescape(parts[3]), _unescape(parts[4])))
        elif kind[0] == "cgroup" and controller in kind[2].split(","):
            found.append(_Mount(1, _unescape(parts[3]), _unescape(parts[4])))
    return found


def _below(group: str, mount_root: str) -> str:
    """The path of a group relative to its mount point; the mount point if it is not below it.

    In a container without a cgroup namespace both are the host's path of the container; a group
    above the namespace's root shows as ``/..``.
    """
    prefix = mount_root.rstrip("/")
    if ".." in group.split("/") or not (group == prefix or group.startswith(prefix + "/")):
        return ""
    return group[len(prefix) :].strip("/")


def _unescape(text: str) -> str:
    """Undo mountinfo's escapes of blanks: ``\\040``."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
