"""The nft backend: iptables' rules in nf_tables, through iptables-nft-save and -restore."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_iptables.errors import KernelRefused, SaveFileError
from istio_iptables.kernel import netlink, nftbatch
from istio_iptables.kernel.backend import nft_tables
from istio_iptables.kernel.programs import run
from istio_iptables.netfilter.edits import restore_lines
from istio_iptables.netfilter.model import TABLES, Family, Ruleset
from istio_iptables.netfilter.savefile import parse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_iptables.kernel.backend import Transaction
    from istio_iptables.netfilter.edits import Edit

__all__ = ["Nft"]


def _program(family: Family, what: str) -> str:
    return f"{'iptables' if family is Family.IPV4 else 'ip6tables'}-nft-{what}"


class Nft:
    """The nf_tables of the network namespace that the process is in, as iptables sees them."""

    name = "nft"

    def holds_rules(self) -> bool:
        """Whether a table that iptables uses has a rule, of whatever kind."""
        held = netlink.nft_rules()
        return any((family.number, name) in held for family in Family for name in TABLES)

    def read(self, family: Family) -> Ruleset:
        """The tables this namespace has; none are asked for where there are none."""
        if not nft_tables(family):
            return Ruleset(family)
        text = run([_program(family, "save")])
        if "is incompatible, use 'nft' tool" in text:
            message = (
                f"the {family.title} nf_tables hold rules that iptables can't show, so it can't be"
                " told what is there; use --force-iptables-binary legacy, or remove them"
            )
            raise KernelRefused(message)
        try:
            return parse(text, family)
        except SaveFileError as error:
            message = f"can't read what {_program(family, 'save')} says: {error}"
            raise KernelRefused(message) from error

    def prepare(
        self, family: Family, table: str, steps: Sequence[Edit], *, check: bool = True
    ) -> Transaction:
        """The text for the table, tried with --test."""
        restore = _Restore(family, table, "\n".join(restore_lines(table, steps)) + "\n")
        if check:
            restore.test()
        return restore

    def forget(self, family: Family, table: str) -> None:
        """Take away the table if we made it and it holds nothing."""
        nftbatch.remove_table(family, table)


class _Restore:
    """The text of one table for iptables-nft-restore, which puts it in place in one step."""

    def __init__(self, family: Family, table: str, text: str) -> None:
        self._family = family
        self._table = table
        self._program = _program(family, "restore")
        self._text = text

    def test(self) -> None:
        """Have the program read the text, and change nothing."""
        run([self._program, "--noflush", "--test"], self._text)

    def commit(self) -> None:
        """Run the program; the kernel takes the table as a whole or not at all.

        A table that is not there is made first, with the mark by which it is known to be ours.
        """
        nftbatch.make_table(self._family, self._table)
        run([self._program, "--noflush"], self._text)

    def close(self) -> None:
        """Nothing: what is prepared is a text."""
