"""A seccomp filter for graded programs: the system calls that would lead out of the sandbox fail with EPERM.

A filter sees the numbers that a call is given, and no memory behind the numbers: so a filter knows no paths
(small_root.py and landlock.py do). But a filter needs no privilege, and covers what goes on between two processes:
sockets, signals, tracing. Numbers: asm/unistd_64.h (x86-64) and asm-generic/unistd.h (arm64) of Linux 6. On another
processor there is no filter.
"""

import ctypes
import errno
import os
import struct
import sys

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2  # <linux/prctl.h>, <linux/seccomp.h>
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06  # <linux/bpf_common.h>
_NR, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_X32 = 0x40000000
_SOCK_STREAM, _SOCK_TYPE_MASK = 1, 0xF
_CLONE_NEW = 0x7E020000 | 0x80
"""The flags of clone that make namespaces: cgroup, uts, ipc, user, pid, net, mount and time."""

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""The column below, and AUDIT_ARCH_* of <linux/audit.h>."""

_ALWAYS = {
    # Ways to other namespaces and file systems.
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    # Sockets of every kind: network, Unix, netlink. A pair of streams, which leads nowhere, is let through below.
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    # Other processes' memory and descriptors.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    # The kernel's keys, programs in the kernel, and its largest surfaces for an attack. io_uring also opens sockets.
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
}
_WITHOUT_PROCESS_NAMESPACE = {
    "kill": (62, 129),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    # Whoever left the session would outlive its end.
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
}
_WITHOUT_OWN_ROOT = {
    # Changes of a file that need no descriptor of it: Landlock knows none of them. -1: there is no such call.
    "chmod": (90, -1),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, -1),
    "fchown": (93, 55),
    "lchown": (94, -1),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "utime": (132, -1),
    "utimes": (235, -1),
    "utimensat": (280, 88),
    "futimesat": (261, -1),
}
_CLONE, _CLONE3, _SOCKETPAIR = (56, 220), (435, 435), (53, 199)
_TGKILL, _PRLIMIT64 = (234, 131), (302, 261)


def is_known() -> bool:
    """Whether this processor's numbers are known."""
    return sys.platform == "linux" and os.uname().machine in _MACHINES and sys.maxsize > 1 << 32


def forbid(*, own_processes: bool, own_root: bool) -> bool:
    """Forbids the calls to this process and all that it starts, for good; False where that cannot be had.

    `own_processes`: the process is in a process namespace of its own. `own_root`: it sees a file system of its own. Needs
    no_new_privs (privileges.py) and a process with one thread.
    """
    if not is_known():
        return False
    filter_ = b"".join(struct.pack("HBBI", *one) for one in _program(own_processes, own_root))

    class Program(ctypes.Structure):
        """struct sock_fprog of <linux/filter.h>."""

        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))

    program = Program(len(filter_) // 8, filter_)
    return ctypes.CDLL(None).prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0


def _program(own_processes: bool, own_root: bool) -> "list[tuple[int, int, int, int]]":
    """The instructions: code, jump if true, jump if false, value. Each rule ends the filter or falls through to the next."""
    column, architecture = _MACHINES[os.uname().machine]
    denied = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    program = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NR)]
    program += [(_AT_LEAST, 0, 1, _X32), denied]
    names = _ALWAYS | ({} if own_processes else _WITHOUT_PROCESS_NAMESPACE) | ({} if own_root else _WITHOUT_OWN_ROOT)
    for numbers in names.values():
        if numbers[column] >= 0:
            program += [(_EQUAL, 0, 1, numbers[column]), denied]
    # clone3 takes its flags in memory: the C library falls back to clone where there is no clone3.
    program += [(_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    program += _argument_rule(_CLONE[column], 0, mask=_CLONE_NEW, allowed=0)
    # A pair of datagram sockets could still be sent to the path of a socket of somebody else.
    program += _argument_rule(_SOCKETPAIR[column], 1, mask=_SOCK_TYPE_MASK, allowed=_SOCK_STREAM)
    if not own_processes:
        program += _argument_rule(_TGKILL[column], 0, mask=0xFFFFFFFF, allowed=os.getpid())  # raise() and abort()
        program += _argument_rule(_PRLIMIT64[column], 0, mask=0xFFFFFFFF, allowed=0)
    return [*program, (_RETURN, 0, 0, _ALLOW)]


def _argument_rule(number: int, place: int, *, mask: int, allowed: int) -> "list[tuple[int, int, int, int]]":
    """Allows call `number` iff the lower half of argument `place`, masked, is `allowed`; both machines are little-endian."""
    return [
        (_EQUAL, 0, 5, number),
        (_LOAD, 0, 0, _ARGUMENTS + 8 * place),
        (_AND, 0, 0, mask),
        (_EQUAL, 0, 1, allowed),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    ]
