"""The nft backend: iptables' rules in nf_tables, through iptables-nft-save and -restore."""

from __future__ import annotations

from istio_iptables.errors import KernelRefused, SaveFileError
from istio_iptables.kernel import nftables, nftbatch
from istio_iptables.kernel.backend import Reading, UnusableTable
from istio_iptables.kernel.programs import ProgramFailed, run, run_all
from istio_iptables.netfilter.edits import restore_lines
from istio_iptables.netfilter.model import BUILT_IN_CHAINS, TABLES, Family, Match, Ruleset, Target
from istio_iptables.netfilter.savefile import parse
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from istio_iptables.kernel.backend import Transaction
    from istio_iptables.netfilter.edits import Edit
    from istio_iptables.netfilter.model import Chain, Rule, Table
    from istio_iptables.netfilter.ownership import Ownership

__all__ = ["Nft"]


def _program(family: Family, what: str) -> str:
    return f"{'iptables' if family is Family.IPV4 else 'ip6tables'}-nft-{what}"


class Nft:
    """The nf_tables of the network namespace that the process is in, as iptables sees them."""

    name = "nft"

    def __init__(self, ownership: Ownership) -> None:
        self._is_own_chain = ownership.is_own_chain

    def look(self) -> tuple[Reading, ...]:
        """The tables there are, as far as iptables can show them; none are asked for without them."""
        stores = [_Store(family) for family in Family]
        printed = iter(
            run_all([*_save(store.family), name] for store in stores for name in store.tables)
        )
        return tuple(
            self._reading(store, {name: next(printed) for name in store.tables}) for store in stores
        )

    def table(self, family: Family, name: str) -> Table | None:
        """One table as iptables shows it."""
        store = _Store(family)
        if name not in store.tables:
            return None
        try:
            return _shown(store, name, run([*_save(family), name]))
        except KernelRefused as error:
            if error.busy:
                raise
            reason = _why_unread(family, name, error, ours=self._holds_ours(store, name))
            raise KernelRefused(reason) from error

    def prepare(
        self, family: Family, table: str, steps: Sequence[Edit], *, check: bool = True
    ) -> Transaction:
        """The text for the table, tried with --test."""
        for each in nftables.tables(family.number):
            if each.name == table and each.owner is not None:
                message = (
                    f"can't change the {family.title} table {table} (nft): it is owned by another"
                    f" process (netlink port {each.owner}), which alone may change it"
                )
                raise KernelRefused(message)
        steps = tuple(map(_by_number_if_native, steps))
        restore = _Restore(family, table, "\n".join(restore_lines(table, steps)) + "\n")
        if check:
            restore.test()
        return restore

    def forget(self, family: Family, table: str) -> None:
        """Take away the table if we made it and it holds nothing."""
        nftbatch.remove_table(family, table)

    def _holds_ours(self, store: _Store, table: str) -> bool:
        return any(self._is_own_chain(each.name) for each in store.chains if each.table == table)

    def _reading(self, store: _Store, printed: Mapping[str, str | KernelRefused]) -> Reading:
        """What there is of a family; *printed* is what iptables-nft-save says of each table."""
        tables: list[Table] = []
        faults: list[UnusableTable] = []
        for name, text in printed.items():
            ours = self._holds_ours(store, name)
            try:
                tables.append(_shown(store, name, text))
            except KernelRefused as error:
                if error.busy:
                    raise
                reason = _why_unread(store.family, name, error, ours=ours)
                faults.append(
                    UnusableTable(store.family, name, self.name, reason, ours, unread=True)
                )
            else:
                faults += self._fault(store, name, ours=ours)
        return Reading(
            Ruleset(store.family, tuple(tables)),
            tuple(faults),
            bool(store.rules),
            any(self._holds_ours(store, name) for name in store.tables),
        )

    def _fault(self, store: _Store, name: str, *, ours: bool) -> Iterator[UnusableTable]:
        """Why the table can't take rules of ours or apply them, if that is so."""
        family, table = store.family, store.tables[name]
        what = f"the {family.title} table {name} (nft)"
        if table.dormant:
            reason = f"{what} is dormant: the kernel applies none of its rules"
        elif table.owner is not None:
            reason = (
                f"{what} is owned by another process (netlink port {table.owner}),"
                " which alone may change it"
            )
        else:
            return
        yield UnusableTable(family, name, self.name, reason, ours, dormant=table.dormant)


class _Store:
    """What the kernel says of the tables of one family that iptables uses."""

    def __init__(self, family: Family) -> None:
        self.family = family
        there = {table.name: table for table in nftables.tables(family.number)}
        self.tables = {name: there[name] for name in TABLES if name in there}
        self.chains: list[nftables.NftChain] = []
        #: By table and chain, what can be believed of each rule.
        self.rules: dict[str, dict[str, list[nftables.Shown]]] = {}
        if self.tables:
            self.chains += nftables.chains(family.number)
            for _, table, chain, expressions in nftables.rules(family.number):
                if table in self.tables:
                    chains = self.rules.setdefault(table, {})
                    chains.setdefault(chain, []).append(nftables.shown(expressions))


def _save(family: Family) -> tuple[str, str]:
    """The command that prints the table whose name comes behind it."""
    return _program(family, "save"), "-t"


def _why_unread(family: Family, name: str, error: KernelRefused, *, ours: bool) -> str:
    """Why a table can't be read, and what helps, which is no second copy in the other backend."""
    table = f"the {family.title} table {name} (nft)"
    reason = f"{table}{' holds chains of ours and' if ours else ''} can't be read: "
    reason += "; ".join(error.lines)
    if isinstance(error, ProgramFailed):
        shown = f"'nft -a list table {nftables.FAMILIES[family.number]} {name}' lists its rules"
        other = "" if ours else "use --force-iptables-binary legacy, or "
        reason += f": {other}remove what iptables can't show ({shown})"
    return reason


def _require_own_chains(table: str, chains: Iterable[nftables.NftChain]) -> None:
    """Raise ProgramFailed if a chain has the name of a built-in one and is another.

    iptables shows an empty chain in its place, or two.
    """
    for chain in chains:
        if "\n" in chain.name:
            message = f"the name of its chain {chain.name!a} holds a line end"
            raise ProgramFailed(message)
        if chain.name in BUILT_IN_CHAINS[table] and not nftables.is_iptables(chain):
            message = f"its chain {chain.name} has another type, hook or priority than iptables'"
            raise ProgramFailed(message)


def _shown(store: _Store, name: str, printed: str | KernelRefused) -> Table:
    """One table as iptables-nft-save *printed* it, rules that it shows wrongly marked as such."""
    _require_own_chains(name, (chain for chain in store.chains if chain.table == name))
    if isinstance(printed, KernelRefused):
        raise printed
    try:
        found = parse(printed, store.family).table(name)
    except SaveFileError as error:
        message = f"can't understand what {_program(store.family, 'save')} says: {error}"
        raise KernelRefused(message) from error
    if found is None:
        # Then it prints a comment in place of the table.
        message = "it holds rules that iptables can't show"
        raise ProgramFailed(message)
    rules = store.rules.get(name, {})
    return found._replace(
        chains=tuple(_mark_unshown(chain, rules.get(chain.name, ())) for chain in found.chains)
    )


#: Stands for what iptables does not show of a rule; matches of a name unknown to iptables-save's
#: readers may match or not, targets may do anything.
_NATIVE = "native-nftables"


def _mark_unshown(chain: Chain, shown: Sequence[nftables.Shown]) -> Chain:
    if all(map(all, shown)):
        return chain
    if len(shown) != len(chain.rules):
        refused = KernelRefused("it was changed by another program meanwhile")
        refused.busy = True
        raise refused
    return chain._replace(rules=tuple(map(_mark, chain.rules, shown)))


def _by_number_if_native(step: Edit) -> Edit:
    """*step*; a rule that iptables can't spell is deleted by its number."""
    rule = step.rule
    native = (rule.target is not None and rule.target.name == _NATIVE) or any(
        match.name == _NATIVE for match in rule.matches
    )
    return step._replace(by_text=False) if native else step


def _mark(rule: Rule, shown: nftables.Shown) -> Rule:
    if not shown.target:
        rule = rule._replace(target=Target(_NATIVE), verbatim="")
    if not shown.matches:
        rule = rule._replace(matches=(*rule.matches, Match(_NATIVE)), verbatim="")
    return rule


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
