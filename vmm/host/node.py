"""The device as a file: what it is, whose, and whether this process may open it."""

from __future__ import annotations

import dataclasses
import grp
import os
import pwd
import stat

KVM_NUMBER = (10, 232)  # the kernel's Documentation/admin-guide/devices.txt


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """A path that should be KVM's device.

    mode      type and permissions, as stat(2) has them; None if there is nothing at the path
    number    the device's major and minor number
    owner     and group: their names, or numbers where those have none
    allowed   whether its permissions let this process read and write it
    member    whether this process is in its group
    listed    whether its user is, by the group database: for one who has not logged in since
    """

    path: str
    mode: int | None = None
    number: tuple[int, int] = (0, 0)
    owner: str = ""
    group: str = ""
    allowed: bool = False
    member: bool = False
    listed: bool = False

    @property
    def is_device(self) -> bool:
        """Whether it is a character device at all."""
        return self.mode is not None and stat.S_ISCHR(self.mode)

    @property
    def group_may(self) -> bool:
        """Whether its group may read and write it, and is one that users can be added to."""
        joinable = self.group != "root" and not self.group.isdigit()
        return self.mode is not None and self.mode & 0o060 == 0o060 and joinable

    def permissions(self) -> str:
        """Return it as ls(1) does, "crw-rw---- root kvm"; "" if there is nothing."""
        return "" if self.mode is None else f"{stat.filemode(self.mode)} {self.owner} {self.group}"


def look(path: str) -> Node:
    """Look at the path, which need not exist, without opening it."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return Node(path)
    name, listed = _group(status.st_gid)
    return Node(
        path=path,
        mode=status.st_mode,
        number=(os.major(status.st_rdev), os.minor(status.st_rdev)),
        owner=_owner(status.st_uid),
        group=name,
        allowed=os.access(path, os.R_OK | os.W_OK, effective_ids=True),
        member=status.st_gid in {os.getegid(), *os.getgroups()},
        listed=listed,
    )


def _owner(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> tuple[str, bool]:
    """Return a group's name, and whether the group database lists our user in it."""
    try:
        entry = grp.getgrgid(gid)
    except KeyError:
        return str(gid), False
    return entry.gr_name, _owner(os.geteuid()) in entry.gr_mem
