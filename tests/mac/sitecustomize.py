"""What a Mac has not, taken away. Python loads this file by itself where its folder is on the path; the package knows nothing of it.

The lists are what Python's own type stubs give for Linux and not for macOS, of modules that a program may use by name. PACE in the
environment is how many seconds each write of a block takes, so that there is time to be stopped in.
"""

import builtins
import ctypes
import errno
import fcntl
import io
import os
import posix
import resource
import select
import signal
import sys
import time
import types
from importlib.machinery import SourceFileLoader

LACKING = {
    os: """O_DIRECT O_LARGEFILE O_NOATIME O_PATH O_RSYNC O_TMPFILE POSIX_FADV_DONTNEED POSIX_FADV_NOREUSE POSIX_FADV_NORMAL
        POSIX_FADV_RANDOM POSIX_FADV_SEQUENTIAL POSIX_FADV_WILLNEED P_PIDFD RTLD_DEEPBIND RWF_APPEND RWF_DSYNC RWF_HIPRI RWF_NOWAIT
        RWF_SYNC copy_file_range eventfd eventfd_read eventfd_write fdatasync getrandom getresgid getresuid getxattr listxattr
        memfd_create pidfd_open pipe2 posix_fadvise posix_fallocate preadv pwritev removexattr sched_getaffinity sched_getparam
        sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setparam sched_setscheduler setresgid setresuid setxattr
        splice waitid waitid_result""",
    fcntl: "DN_ACCESS DN_CREATE F_ADD_SEALS F_GETPIPE_SZ F_GET_SEALS F_NOTIFY F_OFD_GETLK F_OFD_SETLK F_OFD_SETLKW F_SETPIPE_SZ F_SETSIG",
    signal: "SIGCLD SIGPOLL SIGPWR SIGRTMAX SIGRTMIN SIGSTKFLT pidfd_send_signal sigtimedwait sigwaitinfo struct_siginfo",
    select: "EPOLLERR EPOLLET EPOLLHUP EPOLLIN EPOLLOUT EPOLLPRI EPOLL_CLOEXEC POLLRDHUP epoll",
    resource: "RLIMIT_NICE RLIMIT_OFILE RLIMIT_RTPRIO RLIMIT_RTTIME RLIMIT_SIGPENDING RUSAGE_THREAD prlimit",
    time: "CLOCK_BOOTTIME CLOCK_TAI pthread_getcpuclockid",
}
"""preadv and pwritev came with macOS 11, and a Python that was built for an older one has them not."""
ABSENT = ("/proc", "/sys", "/dev/shm")

for module, names in LACKING.items():
    for name in names.split():
        for holder in (module, posix) if module is os else (module,):
            if hasattr(holder, name):
                delattr(holder, name)


def _without_linux_folders(function):
    def called(path, *arguments, **named):
        text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
        if text.startswith(ABSENT):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), text)
        return function(path, *arguments, **named)

    return called


for name in ("open", "stat", "lstat", "listdir", "scandir", "readlink", "access"):
    setattr(os, name, _without_linux_folders(getattr(os, name)))
io.open = builtins.open = _without_linux_folders(io.open)

_open = os.open


def _open_of_darwin(path, flags, *arguments, **named):
    """A link that is no folder because it must not be followed is another error there."""
    try:
        return _open(path, flags, *arguments, **named)
    except NotADirectoryError as error:
        if flags & os.O_NOFOLLOW and os.path.islink(path):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), error.filename) from None
        raise


os.open = _open_of_darwin

if "PACE" in os.environ:
    _pwrite = os.pwrite

    def _slow_pwrite(*arguments):
        time.sleep(float(os.environ["PACE"]))
        return _pwrite(*arguments)

    os.pwrite = _slow_pwrite

_getrusage = resource.getrusage


def _getrusage_of_darwin(who):
    """Sizes are bytes there."""
    usage = _getrusage(who)
    return types.SimpleNamespace(
        **{name: getattr(usage, name) for name in dir(usage) if name.startswith("ru_")} | {"ru_maxrss": usage.ru_maxrss * 1024}
    )


resource.getrusage = _getrusage_of_darwin


def _symbol(library, name):
    """malloc is not glibc's."""
    if name == "mallopt":
        raise AttributeError(name)
    return _found(library, name)


_found, ctypes.CDLL.__getattr__ = ctypes.CDLL.__getattr__, _symbol

fcntl.F_FULLFSYNC = 51  # this system answers that it knows none, as a Mac does for a disk of a server


class _Sys(types.ModuleType):
    """sys with another platform, for the package alone: what other libraries load by that name are files of this system."""

    platform = "darwin"

    def __getattr__(self, name):
        return getattr(sys, name)

    def __setattr__(self, name, value):
        setattr(sys, name, value)


_execute = SourceFileLoader.exec_module


def _execute_on_darwin(loader, module):
    _execute(loader, module)
    if module.__name__.startswith("paramdelta_dist") and vars(module).get("sys") is sys:
        module.sys = _Sys("sys")


SourceFileLoader.exec_module = _execute_on_darwin
