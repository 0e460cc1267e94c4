"""libiptc's handles of legacy tables, through python-iptables."""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import struct
import sys
from types import ModuleType

from istio_iptables.errors import KernelRefused
from istio_iptables.kernel.capabilities import missing
from istio_iptables.kernel.xt_abi import UnknownPartError, encode
from istio_iptables.netfilter.edits import Action
from istio_iptables.netfilter.model import Family
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from istio_iptables.netfilter.edits import Edit

__all__ = ["Handle", "import_iptc"]

#: Where distributions keep libxtables' extensions.
_EXTENSION_FOLDERS = (
    "/usr/lib/{}/xtables",
    "/usr/lib64/xtables",
    "/usr/lib/xtables",
    "/lib/xtables",
)
_TWO_NUMBERS = struct.Struct("=HH")
_XTABLES_VERSIONS = (12, 11, 10)


def _load_library(*names: str) -> ctypes.CDLL | None:
    for name in names:
        try:
            # The error number of each call is kept for ctypes.get_errno().
            return ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL, use_errno=True)
        except OSError:
            continue
    return None


def _find_library(*names: str) -> tuple[ctypes.CDLL | None, int]:
    """What python-iptables asks for by name: the library, and the version of libxtables."""
    for name in names:
        if name == "xtables":
            for version in _XTABLES_VERSIONS:
                library = _load_library(f"libxtables.so.{version}")
                if library is not None:
                    return library, version
        elif name == "xtwrapper":
            wrapper = importlib.util.find_spec("libxtwrapper")
            library = _load_library((wrapper and wrapper.origin) or "libxtwrapper.so")
            if library is None:
                message = "its compiled part, libxtwrapper, is not there"
                raise ImportError(message)
            return library, 0
        else:
            library = _load_library(f"lib{name}.so.2", f"lib{name}.so.0")
            if library is not None:
                return library, 2
    return None, 0


def import_iptc() -> Any:  # noqa: ANN401 - python-iptables has no types
    """python-iptables, without the search for its libraries.

    Left alone, its util module starts gcc, ld, ldconfig and modprobe, 0.2 s of them. What it
    would find is known here, so that module is put in its place ready-made.
    """
    if "iptc" in sys.modules:
        return sys.modules["iptc"]
    util = ModuleType("iptc.util")
    util.find_library = _find_library  # type: ignore[attr-defined]
    util.find_libc = lambda: ctypes.CDLL(None)  # type: ignore[attr-defined]
    util.load_kernel = lambda *_arguments, **_options: None  # type: ignore[attr-defined]
    folder = os.environ.get("XTABLES_LIBDIR")
    try:
        if folder is None:
            multiarch = getattr(sys.implementation, "_multiarch", "")
            folders = (each.format(multiarch) for each in _EXTENSION_FOLDERS)
            os.environ["XTABLES_LIBDIR"] = next(filter(os.path.isdir, folders), "/usr/lib/xtables")
        sys.modules["iptc.util"] = util
        import iptc
    except MemoryError:
        raise
    except Exception as error:
        # Its own message names neither the package nor the library.
        if isinstance(error, ModuleNotFoundError) and error.name == "iptc":
            message = (
                "python-iptables is not installed for this Python: pip install python-iptables, or"
                " use the other backend: --force-iptables-binary nft"
            )
            raise KernelRefused(message) from error
        message = (
            "python-iptables can't be loaded: is Debian's package iptables (libxtables, libip4tc,"
            f" libip6tc) installed? ({error})"
        )
        raise KernelRefused(message) from error
    finally:
        # Both are read while it is imported, and are nothing for the caller's process.
        sys.modules.pop("iptc.util", None)
        if folder is None:
            os.environ.pop("XTABLES_LIBDIR", None)
    return iptc


def _text(name: bytes) -> str:
    """A name as text; bytes that are no UTF-8 stay what they are."""
    return name.decode(errors="surrogateescape")


class _Name(str):
    """The name of a chain for python-iptables, which takes text and asks for its bytes."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "surrogateescape") -> bytes:
        """The bytes of the name, whatever they are."""
        return super().encode(encoding, errors)


class Handle:
    """One libiptc handle: a snapshot of a table that edits change and commit puts in place."""

    def __init__(self, family: Family, table: str) -> None:
        iptc = import_iptc()
        self._family = family
        self._table_name = table
        self._error = iptc.IPTCError
        maker = iptc.Table if family is Family.IPV4 else iptc.Table6
        # python-iptables keeps its table objects: one that it has may be another namespace's, or
        # hold another handle of ours, which would go when this one is opened.
        self._table: Any = object.__new__(maker)
        ctypes.set_errno(0)
        try:
            self._table._init(table, autocommit=False)  # noqa: SLF001 - what its class's call does beside that
        except iptc.IPTCError as error:
            raise self._refused(error, "open") from error
        self._calls = self._table._iptc  # noqa: SLF001 - the table's methods lack what is needed
        entry = self._calls.iptc_first_rule.restype
        self._offsets = entry._type_.target_offset.offset

    def close(self) -> None:
        """Free the handle, changes and all."""
        if self._table is not None:
            self._table.close()
            self._table = None

    def chain_names(self) -> list[str]:
        """The names of all chains, built-in ones first."""
        calls, handle = self._calls, self._table._handle  # noqa: SLF001
        names = []
        name = calls.iptc_first_chain(handle)
        while name:
            names.append(_text(name))
            name = calls.iptc_next_chain(handle)
        return names

    def edit(self, step: Edit) -> None:
        """Carry out one edit in the handle."""
        table, chain = self._table, _Name(step.chain)
        ctypes.set_errno(0)
        try:
            if step.action is Action.APPEND:
                table.append_entry(chain, encode(step.rule, self._family))
            elif step.action is Action.RESET:
                if table.is_chain(chain):
                    table.flush_entries(chain)
                else:
                    table.create_chain(chain)
            elif step.action is Action.INSERT:
                table.insert_entry(chain, encode(step.rule, self._family), step.position - 1)
            elif step.action is Action.DELETE_CHAIN:
                table.delete_chain(chain)
            elif not self._calls.iptc_delete_num_entry(
                chain.encode(),
                step.position - 1,
                table._handle,  # noqa: SLF001 - python-iptables can't delete by number
            ):
                message = f"no rule {step.position} in {chain}"
                raise self._error(message)  # noqa: TRY301 - one handler for all of them
        except (self._error, UnknownPartError) as error:
            raise self._refused(error, "change chain", chain, "of") from error

    def commit(self) -> None:
        """Put the changed table in place of the kernel's, in one step."""
        ctypes.set_errno(0)
        try:
            self._table.commit()
        except self._error as error:
            raise self._refused(error, "commit") from error
        finally:
            self.close()

    def _refused(self, error: Exception, *words: str) -> KernelRefused:
        what = " ".join(words)
        # What libiptc left behind: it keeps no error of its own, and Python has run meanwhile.
        number = ctypes.get_errno()
        table = f"the {self._family.title} table {self._table_name} (legacy)"
        if isinstance(error, UnknownPartError):
            return KernelRefused(f"can't {what} {table}: {error}")
        reason = os.strerror(number) if number else str(error)
        if number in {errno.EPERM, errno.EACCES}:
            reason += missing()
        elif number == errno.ENOENT:
            reason = "the kernel has no such table (is its module loaded?)"
        elif number == errno.EAGAIN:
            reason = "it was changed by another program meanwhile"
        refused = KernelRefused(f"can't {what} {table}: {reason}")
        # Adding the old counters is invalid when another program has changed the table since it was replaced.
        refused.busy = number == errno.EAGAIN or (what == "commit" and number == errno.EINVAL)
        return refused
