"""Our native nftables tables: what of them is there, and changing all of them in one transaction.

nft itself lists them and takes them, so that what is compared is what it says. Whether a transaction
was made is told by the handles of the tables, which it gives again; that needs no program.
"""

from __future__ import annotations

from functools import partial

from istio_iptables.errors import KernelRefused, SaveFileError
from istio_iptables.kernel import nftables
from istio_iptables.kernel.programs import ProgramFailed, run, run_all
from istio_iptables.kernel.steps import Step
from istio_iptables.kernel.tablenames import inet_tables
from istio_iptables.netfilter.native import NativePlan, listing, text, transaction
from istio_iptables.netfilter.plan import DesiredState
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from istio_iptables.netfilter.native import NativeTable
    from istio_iptables.netfilter.ownership import NativeOwnership

__all__ = ["NativeChange", "compare_native"]


class NativeChange(NamedTuple):
    """Our native tables as they are, as they are wanted, and the way from one to the other."""

    #: What nft lists of each table of ours that is there.
    live: Mapping[str, str]
    #: Which tables the listings are of, by their handles.
    handles: frozenset[int]
    #: The tables that are to be there, and none of the others of ours.
    wanted: NativePlan

    def __bool__(self) -> bool:
        return any(self._kinds())

    def differences(self) -> Iterator[str]:
        """A line for each table that is not as wanted; none where all of them are missing."""
        if not self.wanted.tables and self.live:
            names = ", ".join(f"inet {name}" for name in self.live)
            yield f"extra: native nftables rules of ours, which take effect as well: {names}"
            return
        if self.live:
            yield from (f"{kind}: nftables table inet {name}" for kind, name in self._kinds())

    def prepare(self) -> Step:
        """The change as a step, its transaction tried; raises KernelRefused if nft won't take it."""
        made = text(self.wanted, "restore")
        for each in nftables.tables(nftables.INET):
            if each.name in self.wanted.names and each.owner is not None:
                message = (
                    f"can't change the nftables table inet {each.name}: it is owned by another"
                    f" process (netlink port {each.owner}), which alone may change it"
                )
                raise KernelRefused(message)
        try:
            run(["nft", "-c", "-f", "-"], made)
        except ProgramFailed as error:
            # What nft and the kernel can do is told by this trial alone, so it may be an old one.
            message = f"{run(['nft', '--version']).strip()} can't take these rules: {error}"
            raise KernelRefused(message) from error
        return Step("the native nftables tables", partial(_commit, made), self._put_back)

    def _kinds(self) -> Iterator[tuple[str, str]]:
        tables = {table.name: table for table in self.wanted.tables}
        for name in self.wanted.names:
            live = self.live.get(name)
            if name in tables:
                if live is None:
                    yield "missing", name
                elif live != listing(tables[name]) and _differ(live, tables[name]):
                    yield "changed", name
            elif live is not None:
                yield "extra", name

    def _put_back(self) -> None:
        """Take the change back, if it was made."""
        names = self.wanted.names
        if _handles(names) != self.handles:
            _commit(transaction(names, "".join(self.live.values())))


def compare_native(ownership: NativeOwnership, wanted: NativePlan | None = None) -> NativeChange:
    """How our native tables differ from those of *wanted*; from none of them without it.

    Raises KernelRefused where they can't be read, or hold what is not ours.
    """
    names = inet_tables(ownership.tables)
    handles = _handles(names)
    live = {}
    results = run_all(["nft", "-s", "list", "table", "inet", name] for name in names)
    for name, result in zip(names, results, strict=True):
        if isinstance(result, KernelRefused):
            raise result
        live[name] = result
    foreign = [line for name in names for line in _foreign(ownership, name, live[name])]
    if foreign:
        raise KernelRefused(*foreign)
    return NativeChange(live, handles, wanted or NativePlan((), ownership.tables, DesiredState(())))


def _differ(listed: str, wanted: NativeTable) -> bool:
    """Whether what is listed says anything else, which versions of nft do in more than one way."""
    from istio_iptables.differences.rulesets import diff_native  # for what is not as printed
    from istio_iptables.netfilter.nftlisting import planned_table, read_listing

    try:
        return bool(diff_native(read_listing(listed.splitlines()), [planned_table(wanted)]))
    except SaveFileError:
        return True


def _foreign(ownership: NativeOwnership, table: str, listed: str) -> Iterator[str]:
    """A line for each thing in a table of ours that is not a chain of ours."""
    ours = {f"chain {name}" for name in ownership.chains(table)}
    for line in listed.splitlines():
        # One tab is before what stands in the table itself, two are before what is in that.
        what = line[1:].removesuffix(" {")
        if line.startswith("\t") and line.endswith(" {") and line[1] != "\t" and what not in ours:
            yield (
                f"the nftables table inet {table} holds what is not ours, the {what}: move it to a"
                f" table of its own ('nft list table inet {table}' shows it)"
            )


def _handles(names: tuple[str, ...]) -> frozenset[int]:
    return frozenset(each.handle for each in nftables.tables(nftables.INET) if each.name in names)


def _commit(made: str) -> None:
    run(["nft", "-f", "-"], made)
