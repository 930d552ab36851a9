"""`python nameless_machine.py [--ipv6-alone] COMMAND...`: becomes COMMAND on a machine whose own name does not resolve.

The machine is made of namespaces: another host name, and no network but loopback. With --ipv6-alone loopback has ::1 alone.
The user has a number without an entry in /etc/passwd, and the rights on files of whoever called.
"""

import ctypes
import fcntl
import os
import socket
import struct
import sys

_CLONE_NEWUSER, _CLONE_NEWUTS, _CLONE_NEWNET = 0x10000000, 0x04000000, 0x40000000  # <linux/sched.h>
_SIOCSIFADDR, _SIOCSIFFLAGS = 0x8916, 0x8914  # <linux/sockios.h>
_IFF_UP = 1
NAME, NUMBER = "a-name-that-nobody-knows", 54321


def main() -> None:
    """See above."""
    arguments = sys.argv[1:]
    ipv6_alone = arguments[0] == "--ipv6-alone"
    _unshare()
    socket.sethostname(NAME)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        fcntl.ioctl(handle, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
        if ipv6_alone:  # the address 0.0.0.0 takes the interface's address away
            fcntl.ioctl(handle, _SIOCSIFADDR, struct.pack("16sHH4s16x", b"lo", socket.AF_INET, 0, bytes(4)))
    os.execvp(arguments[ipv6_alone], arguments[ipv6_alone:])


def _unshare() -> None:
    """Enters the namespaces; has all rights on them until COMMAND runs."""
    uid, gid = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWUTS | _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{NUMBER} {uid} 1"), ("gid_map", f"{NUMBER} {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


if __name__ == "__main__":
    main()
