"""What a graded program could try, each as lines of Python that raise when the sandbox holds.

`SECRET`, `GRADER` (files of the service's user), `UNIX` (a socket's path), `ABSTRACT`, `PORT`, `PID` and `HOME` are defined.
"""

READS = {
    "read a key": "open(SECRET).read()",
    "read /etc/shadow": "open('/etc/shadow').read()",
    "list the home": "assert os.listdir(HOME)",
    "read a key through a link": "os.symlink(SECRET, 'link'); open('link').read()",
    "read a key through a hard link": "os.link(SECRET, 'hard'); open('hard').read()",
    "read a key through /proc/self/root": "open('/proc/self/root' + SECRET).read()",
    "read a key through the first process": "open('/proc/1/root' + SECRET).read()",
    "read a key through the parent's folder": "open('/proc/%d/cwd/' % os.getppid() + '..' * 9 + SECRET).read()",
    "read a key from above the folder": "open('../' * 12 + SECRET).read()",
    "read an environment": "open('/proc/%d/environ' % PID, 'rb').read()",
    "find a key in any environment": "assert any(b'SLUICE_TEST_KEY' in environ(p) for p in PIDS())",
    "find a key in its own environment": "assert 'SLUICE_TEST_KEY' in os.environ",
    "read memory": "open('/proc/%d/mem' % PID, 'rb').read(1)",
    "read memory by a call": "b = ctypes.create_string_buffer(8); v = (ctypes.c_void_p * 2)(ctypes.addressof(b), 8);"
    " must(libc.process_vm_readv(PID, v, 1, v, 1, 0) >= 0 or errno() not in (1, 3))",
    "find an inherited descriptor": "assert [n for n in range(3, 256) if is_open(n)]",
    "list the run's sockets": "assert os.listdir(os.path.dirname(UNIX))",
}
WRITES = {
    "write a file": "open(SECRET, 'w')",
    "append to a grader": "open(GRADER, 'a').write('x')",
    "empty a grader": "os.truncate(GRADER, 0)",
    "empty a grader by reading it": "os.open(GRADER, os.O_RDONLY | os.O_TRUNC)",
    "remove a grader": "os.remove(GRADER)",
    "rename a grader": "os.rename(GRADER, GRADER + '.old')",
    "change a grader's mode": "os.chmod(GRADER, 0o777)",
    "change a grader's time": "os.utime(GRADER, (0, 0))",
    "make a file beside it": "open(GRADER + '.new', 'w')",
    "make a folder": "os.mkdir(GRADER + '.d')",
    "write into the interpreter": "open(os.path.join(os.path.dirname(os.__file__), 'sluice_test.py'), 'w')",
    "write into its packages": "open(os.path.join(sys.prefix, 'sluice_test.py'), 'w')",
    "write to /dev/shm of all": "assert open('/dev/shm/sluice-test', 'w') and not os.path.realpath('/dev/shm') == '/tmp'",
}
SOCKETS = {
    "connect to a Unix socket": "s = socket.socket(socket.AF_UNIX); s.connect(UNIX)",
    "connect to an abstract Unix socket": "s = socket.socket(socket.AF_UNIX); s.connect(ABSTRACT)",
    "connect to Docker": "s = socket.socket(socket.AF_UNIX); s.connect('/var/run/docker.sock')",
    "connect to a port": "socket.create_connection(('127.0.0.1', PORT), 2)",
    "send a datagram": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))",
    "send to a path from a pair": "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); a.connect(UNIX)",
    "talk to the kernel": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
}
PROCESSES = {
    "look for a process": "os.kill(PID, 0)",
    "kill a process": "os.kill(PID, 9)",
    "kill a thread": "signal.pthread_kill; must(libc.syscall(NUMBERS['tgkill'], PID, PID, 9) == 0)",
    "kill by a descriptor": "signal.pidfd_send_signal(os.pidfd_open(PID), 9)",
    "trace a process": "must(libc.ptrace(16, PID, 0, 0) == 0)",
    "limit a process": "resource.prlimit(PID, resource.RLIMIT_CPU, (0, 0))",
    "slow a process down": "os.setpriority(os.PRIO_PROCESS, PID, 19)",
    "pin a process": "os.sched_setaffinity(PID, {0})",
    "make a user namespace": "must(libc.unshare(0x10000000) == 0)",
    "mount": "must(libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0)",
    "join a namespace": "must(libc.setns(os.open('/proc/%d/ns/mnt' % PID, os.O_RDONLY), 0) == 0)",
    "become somebody": "os.setuid(12)",
    "change the root": "os.chroot('.')",
    "read a key of the kernel": "must(libc.syscall(NUMBERS['keyctl'], 0, -3, 0) >= 0)",
    "use io_uring": "must(libc.syscall(425, 1, ctypes.create_string_buffer(120)) >= 0)",
}
ALL = READS | WRITES | SOCKETS | PROCESSES

_PROGRAM = """
import ctypes, os, platform, resource, signal, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
errno = ctypes.get_errno
NUMBERS = {{"x86_64": {{"tgkill": 234, "keyctl": 250}}, "aarch64": {{"tgkill": 131, "keyctl": 219}}}}[platform.machine()]
def must(true):
    assert true
def PIDS():
    return [p for p in os.listdir("/proc") if p.isdigit()]
def environ(pid):
    try:
        return open("/proc/%s/environ" % pid, "rb").read()
    except OSError:
        return b""
def is_open(number):
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
names = {names!r} | globals()
came_out = []
for what, code in {attacks!r}.items():
    try:
        exec(code, names)
    except BaseException:
        continue
    came_out.append(what)
print("; ".join(came_out) or "none")
"""


def program(**names: object) -> str:
    """A program that tries everything and prints what worked."""
    return _PROGRAM.format(names=names, attacks=ALL)
