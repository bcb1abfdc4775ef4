"""A process that opens no socket and starts no program any more: a seccomp filter, which needs no privilege (Linux)."""

from __future__ import annotations

import ctypes
import errno
import platform
import sys

_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2  # of prctl(2)
_ALLOW, _KILL, _DENY = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM  # linux/seccomp.h
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # linux/bpf_common.h
_X32 = 0x40000000  # call numbers from here on are those of another ABI on x86
# By machine: its audit number, then the numbers of socket, connect, execve, execveat, ptrace, process_vm_writev and
# io_uring_setup (which could open sockets as well).
_MACHINES = {
    "x86_64": (0xC000003E, (41, 42, 59, 322, 101, 311, 425)),
    "aarch64": (0xC00000B7, (198, 203, 221, 281, 117, 271, 425)),
}


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("value", ctypes.c_uint))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.POINTER(_Instruction)))


def seal() -> str | None:
    """From here on this process, and what it forks, gets EPERM for a new socket or program. Returns None, or why this
    machine cannot do that."""
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        return f"there is no filter for {sys.platform} on {platform.machine()}"
    audit, denied = _MACHINES[platform.machine()]
    code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, audit), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    tests = [(_AT_LEAST, _X32), *((_EQUAL, call) for call in denied)]
    code += [
        (test, len(tests) - i, 0, value) for i, (test, value) in enumerate(tests)
    ]  # a jump over the rest and ALLOW
    code += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _DENY)]
    listed = (_Instruction * len(code))(*(_Instruction(*values) for values in code))
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Program(len(code), listed)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.prctl(_SECCOMP, _FILTER, ctypes.byref(program), 0, 0):
        return f"the kernel takes no filter ({errno.errorcode.get(ctypes.get_errno(), ctypes.get_errno())})"
    return None
