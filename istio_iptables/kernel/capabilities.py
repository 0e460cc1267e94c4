"""What the process lacks for changing rules, when the kernel says that it is not permitted."""

from __future__ import annotations

__all__ = ["missing"]

_NEEDED = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13}
_CAPABILITY_VERSION_3 = 0x20080522
_NS_GET_USERNS = 0xB701


def missing() -> str:
    """A clause that names what is missing; "" if that is not known."""
    effective = _effective()
    if effective is None:
        return ""
    lacking = [name for name, bit in _NEEDED.items() if not effective >> bit & 1]
    if lacking:
        return f": {' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} missing"
    if _is_of_another_user_namespace():
        return ": the network namespace belongs to another user namespace than this process"
    return ": no capability is missing, so a seccomp filter or a security module may forbid it"


def _effective() -> int | None:
    """The effective capabilities, asked of the kernel: /proc may be missing."""
    import ctypes
    import struct

    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    # Two of struct __user_cap_data_struct: effective, permitted, inheritable.
    data = ctypes.create_string_buffer(24)
    try:
        if ctypes.CDLL(None).capget(header, data):
            return None
    except (OSError, AttributeError):
        return None
    words = struct.unpack("=6I", data.raw)
    return int(words[0] | words[3] << 32)


def _is_of_another_user_namespace() -> bool:
    """Whether capabilities held here say nothing about this network namespace."""
    import fcntl
    import os

    try:
        network = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        owner = fcntl.ioctl(network, _NS_GET_USERNS)
    except PermissionError:
        # An owner above ours is not shown.
        return True
    except OSError:
        return False
    finally:
        os.close(network)
    try:
        return not os.path.samestat(os.fstat(owner), os.stat("/proc/self/ns/user"))  # noqa: PTH116 - pathlib costs 5 ms
    except OSError:
        return False
    finally:
        os.close(owner)
