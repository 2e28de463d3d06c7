"""Who could have put a file where it is: code is only run where nobody but its owner could have changed it.

As OpenSSH judges the files that let somebody in. Not here: what the code is (``python_step``).
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

from hardware.errors import ModelRefused


def read_trusted(path: str, most_bytes: int) -> tuple[bytes, str]:
    """The content of a file that only root or this process's user can have written, and where it really lies.

    The file is opened first and judged as it is open; then every folder above it, links resolved, up to the root.
    Raises ``ModelRefused`` naming what is in the way, by its bare name.
    """
    name = os.path.basename(path)
    try:
        real = os.path.realpath(path, strict=True)
        fd = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise ModelRefused(f"{name} is no regular file")
            _judge(name, found, fd)
            for folder in Path(real).parents:
                _judge(f"folder {folder.name or '/'}", folder.lstat(), folder)
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise ModelRefused(f"{name} cannot be read: {error.strerror}") from None
    if len(data) > most_bytes:
        raise ModelRefused(f"{name} has more than {most_bytes} bytes")
    return data, real


def _judge(what: str, found: os.stat_result, where: int | Path) -> None:
    mode, user = found.st_mode, os.geteuid()
    if found.st_uid not in (0, user):
        raise ModelRefused(f"{what} belongs to user {found.st_uid}, not to the agent's user {user} or root")
    if stat.S_ISDIR(mode) and mode & stat.S_ISVTX:
        return  # only who owns something in it can take that away
    private = not mode & stat.S_IWGRP or (_is_private(found.st_gid, found.st_uid) and not _has_acl(where))
    others = mode & stat.S_IWOTH or not private
    if others:
        raise ModelRefused(f"{what} can be written by others, and code in it would be run: chmod go-w")


def _is_private(group: int, user: int) -> bool:
    """Whether nobody but that user is in the group, as on systems that give each user one of the same name."""
    try:
        of_group, of_user = grp.getgrgid(group), pwd.getpwuid(user)
    except KeyError:
        return False
    alone = set(of_group.gr_mem) <= {of_user.pw_name}
    alone = alone and all(each.pw_uid == user for each in pwd.getpwall() if each.pw_gid == group)
    return alone and of_user.pw_gid == group and of_group.gr_name == of_user.pw_name


def _has_acl(where: int | Path) -> bool:
    """Whether it names users or groups of its own, whose rights the mode shows as those of its group."""
    try:
        return "system.posix_acl_access" in os.listxattr(where)
    except OSError:  # a file system without
        return False
