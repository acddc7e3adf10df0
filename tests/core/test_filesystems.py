"""File systems: which one holds a path, and whether it lies on another machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from distillkit.core import filesystems

MOUNTS = r"""
22 1 254:0 / / rw shared:1 - ext4 /dev/vda rw
30 22 0:26 / /mnt/data rw - nfs4 server:/data rw
31 30 0:27 / /mnt/data/local rw - xfs /dev/vdb rw
32 22 0:28 / /mnt/with\040space rw - fuse.sshfs user@host: rw
33 22 0:29 / /over rw - ext4 /dev/vdc rw
34 33 0:30 / /over rw - tmpfs tmpfs rw
""".lstrip()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/mountinfo")
@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/somebody", "ext4"),
        ("/mnt/data", "nfs4"),
        ("/mnt/data/cache/teachers", "nfs4"),
        ("/mnt/data/local/cache", "xfs"),
        ("/mnt/database", "ext4"),
        ("/mnt/with space/cache", "fuse.sshfs"),
        ("/over/there", "tmpfs"),
    ],
)
def test_the_innermost_and_latest_mount_counts(
    path: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystems, "MOUNTS", tmp_path / "mountinfo")
    (tmp_path / "mountinfo").write_text(MOUNTS)
    assert filesystems.filesystem_type(Path(path)) == kind


def test_a_mac_lists_its_mounts_by_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = "/dev/disk3s1s1 on / (apfs, sealed, local)\nserver:/data on /System/Volumes/Data/home (nfs, nodev)\n"
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(filesystems, "_mount_command", lambda: listed)
    assert filesystems.filesystem_type(Path("/System/Volumes/Data/home/me")) == "nfs"
    assert filesystems.filesystem_type(Path("/tmp")) == "apfs"


def test_network_and_fuse_file_systems_are_told_from_disks() -> None:
    remote = (
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "9p",
        "ceph",
        "lustre",
        "fuse",
        "fuse.sshfs",
        "virtiofs",
        "vboxsf",
        "smbfs",
    )
    local = ("ext4", "xfs", "btrfs", "zfs", "apfs", "tmpfs", "overlay", "fuseblk", "f2fs")
    assert [kind for kind in remote if not filesystems.is_remote(kind)] == []
    assert [kind for kind in local if filesystems.is_remote(kind)] == []


def test_the_file_system_of_this_machine_is_known(tmp_path: Path) -> None:
    assert filesystems.filesystem_type(tmp_path / "not" / "there")
