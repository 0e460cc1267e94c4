"""The rules that a plan is held against, or that a packet meets: a text's or the kernel's."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from istio_iptables.errors import CannotTell, SaveFileError
from istio_iptables.istio.places import is_native_table
from istio_iptables.netfilter.documents import rulesets

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from istio_iptables.api.capture import Plan
    from istio_iptables.netfilter.model import Family, Ruleset

__all__ = ["LIVE", "Live", "Source", "is_native", "require_tables", "rules_of"]


class Live(NamedTuple):
    """The rules in a network namespace."""

    #: A name under /run/netns or a path; "" is the current one, None the plan's.
    namespace: str | None = None
    #: ``legacy`` or ``nft``; "" lets what is in use decide, None is as the plan has it.
    backend: str | None = None
    #: Native nftables rules of ours rather than iptables' where both are there and no plan decides.
    native: bool = False

    def of(self, plan: Plan) -> tuple[str, str]:
        """The namespace and the backend, for *plan*."""
        config = plan.config
        return (
            config.network_namespace if self.namespace is None else self.namespace,
            config.backend if self.backend is None else self.backend,
        )


#: The rules where the plan is to be.
LIVE = Live()


#: Rules as they are given: the text of iptables-save or nft, rulesets, or those in the kernel, which may be
#: written as "live".
Source: TypeAlias = "str | Live | Sequence[Ruleset]"


#: Of a file's encoding, which Python leaves in a text that it reads as UTF-8.
_MARK = "\ufeff"


def require_tables(found: tuple[Ruleset, ...], name: str) -> tuple[Ruleset, ...]:
    """*found*, if there is a table in it: what could not be read is not taken for no rules."""
    if not any(ruleset.tables for ruleset in found):
        message = (
            f"{name}: holds no table of iptables-save, which prints none where it lacks"
            " NET_ADMIN, and none of the rules that the other backend has: try"
            " iptables-legacy-save, iptables-nft-save and nft list ruleset"
        )
        raise CannotTell(message)
    return found


def is_native(found: Iterable[Ruleset]) -> bool:
    """Whether the tables are those of nft, which have a family in their names."""
    return any(is_native_table(table) for ruleset in found for table in ruleset.tables)


def rules_of(source: Source, family: Family | None, name: str) -> tuple[Ruleset, ...] | Live:
    """The rulesets of *source*, or where in the kernel they are.

    *family* is that of a text whose comments and addresses don't tell, *name* what messages call
    it. Raises CannotTell for a text that is none of iptables-save or nft.
    """
    if isinstance(source, Live):
        return source
    if not isinstance(source, str):
        return tuple(source)
    if source == "live":
        return LIVE
    try:
        return require_tables(rulesets(source.removeprefix(_MARK), family), name)
    except SaveFileError as error:
        message = f"{name}: {error.lines[0]}"
        raise CannotTell(message) from error
