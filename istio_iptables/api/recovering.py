"""Rules to the plan that makes them: readings of the rules, tried by building them again."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.api.capture import Plan
from istio_iptables.api.comparing import diff_natively
from istio_iptables.api.rules import is_native
from istio_iptables.differences.rulesets import ChangeKind, diff_rulesets
from istio_iptables.errors import UsageProblems
from istio_iptables.istio.copies import copies, signs, without_copies
from istio_iptables.istio.ownership import OWNERSHIP, find_owned
from istio_iptables.istio.plan import build
from istio_iptables.istio.recovery import SERVERS, read_settings
from istio_iptables.kernel.host import ThisHost
from istio_iptables.settings.config import DEFAULT_PROXY_ID, StandIn, configure
from istio_iptables.settings.declarations import (
    APPLYING,
    DNS,
    FAMILIES,
    INBOUND,
    OUTBOUND,
    PROXY,
    SETTINGS,
    ValueKind,
    setting,
)
from istio_iptables.settings.sources import gather
from istio_iptables.settings.types import ALL, IdRange, Mode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from istio_iptables.differences.rulesets import Difference
    from istio_iptables.istio.recovery import Readings
    from istio_iptables.netfilter.model import Ruleset
    from istio_iptables.netfilter.plan import PolicyRoute
    from istio_iptables.settings.config import Config, Host
    from istio_iptables.settings.sources import Value

__all__ = ["RESOLV_CONF", "Recovered", "install_again", "recover"]

#: The file that a command line with DNS servers names: it has to list them.
RESOLV_CONF = "resolv.conf"
#: How many rules are built in search of settings that leave less unexplained, and how often.
_MOST_RULES = 100_000
_MOST_TRIES = 400
#: The comment of a dry run that names a policy route.
_ROUTE = re.compile(r"# ip -[46] rule add fwmark (0x[0-9a-f]{1,8}) lookup (\d{1,10})", re.ASCII)
#: The groups of settings as people name them.
_PLACES = {each: place for place, each in enumerate(SETTINGS)}
_RANKS = {
    group: rank for rank, group in enumerate((PROXY, OUTBOUND, INBOUND, DNS, FAMILIES, APPLYING))
}


class Recovered(NamedTuple):
    """The settings that rules were made by, as far as the rules tell."""

    plan: Plan
    #: The words of a command line, defaults left out, and the variables beside it.
    arguments: tuple[str, ...]
    environment: dict[str, str]
    #: What the file ``RESOLV_CONF`` has to list, if the arguments name it.
    nameservers: tuple[str, ...]
    #: Whether there is a rule of ours at all.
    ours: bool
    #: What of the rules the plan does not explain.
    differences: tuple[Difference, ...]
    #: What the rules tell of how they came to be there, a line each.
    signs: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The words of the command line for a shell, the variables in front."""
        return self.spelled()

    def spelled(self, *program: str) -> str:
        """The same with *program* between the variables and the words."""
        return _spelled(program, self.arguments, self.environment)


def _spelled(
    program: Iterable[str], arguments: Iterable[str], environment: Mapping[str, str]
) -> str:
    from shlex import quote  # few commands need it

    variables = (f"{name}={quote(text)}" for name, text in environment.items())
    return " ".join([*variables, *program, *map(quote, arguments)])


#: What a plan may be asked for with, and is no part of what is to be installed.
_NOT_INSTALLED = frozenset(
    {"network_namespace", "skip_rule_apply", "reconcile", "force_apply", "cleanup_only", "json"}
)


def install_again(
    plan: Plan, namespace: str, recovered: Recovered | None, *, live: bool = True
) -> str:
    """The command line that makes the rules of *plan* in *namespace*, in place of others of ours.

    *live* says whether the rules that it is about are those of a namespace. Where the settings are
    *recovered*, its DNS servers are those that the pod's resolv.conf lists now.
    """
    if recovered is not None:
        words, environment = list(recovered.arguments), recovered.environment
        if recovered.nameservers:
            at = words.index(setting("resolv_conf").flag)
            del words[at : at + 2]
    else:
        named = {
            name: value.text
            for name, value in plan.values.items()
            if value.text != value.setting.default
            and name not in _NOT_INSTALLED
            and value.setting.group in _RANKS
        }
        if not live and named.get("ip_family") == "dual":
            # A file is held against rules of both families unless --ip-family is given.
            del named["ip_family"]
        if plan.values["proxy_uid"].text == plan.values["proxy_uid"].setting.default:
            # They may be those of $ENVOY_USER, which another shell has not.
            for name, ids in (
                ("proxy_uid", plan.config.proxy_uids),
                ("proxy_gid", plan.config.proxy_gids),
            ):
                if ids != (IdRange.single(DEFAULT_PROXY_ID),):
                    named.setdefault(name, ",".join(map(str, ids)))
        words, environment = list(_words(named)), _environment(named)
    where = ("--network-namespace", namespace) if namespace else ()
    return _spelled(["istio-iptables"], [*words, *where, "--reconcile"], environment)


def _environment(named: Mapping[str, str]) -> dict[str, str]:
    """The settings that only variables can give."""
    return {
        each.environment[0]: named[each.name]
        for each in SETTINGS
        if each.name in named and not each.on_command_line
    }


def recover(rulesets: Sequence[Ruleset], routes: Iterable[PolicyRoute] = ()) -> Recovered:
    """The settings that make *rulesets*, or the ones that leave the least of them unexplained.

    *routes* are the policy routes beside them; those in the comments of a dry run count too.
    """
    tables = dict(_commented(rulesets)) | {each.mark: each.table for each in routes}
    times = copies(rulesets)
    single = without_copies(rulesets, times) if times > 1 else rulesets
    readings = read_settings(single, tables)
    native = {"native_nftables": ("true",)} if is_native(single) else {}
    best = _search(readings | native, single)
    if readings and not native and best.leaves(single):
        # Rules in built-in chains that are ours only if the settings say so.
        other = _search(read_settings(single, tables, owned=False), single)
        best = min(best, other, key=lambda trial: (trial.cost, -trial.plan.state.rule_count))
    return Recovered(
        best.plan,
        tuple(_words(best.named)),
        _environment(best.named),
        best.servers if "resolv_conf" in best.named else (),
        bool(readings),
        best.differences if single is rulesets else _differences(best.plan, rulesets),
        tuple(signs(rulesets)) if readings else (),
    )


def _commented(rulesets: Iterable[Ruleset]) -> Iterator[tuple[int, int]]:
    """The marks and tables of the routes that a dry run prints as comments."""
    for ruleset in rulesets:
        comments = (line for table in ruleset.tables for line in table.comments)
        for line in (*comments, *ruleset.comments):
            if match := _ROUTE.fullmatch(line.rstrip()):
                yield int(match[1], 16), int(match[2])


def _words(named: Mapping[str, str]) -> Iterator[str]:
    """The settings as the words of a command line."""
    for each in sorted(map(setting, named), key=lambda each: (_RANKS[each.group], _PLACES[each])):
        if each.on_command_line:
            yield f"-{each.short}" if each.short else each.flag
            if each.kind is not ValueKind.FLAG:
                yield named[each.name]


class _Trial(NamedTuple):
    """Settings, the plan that they make, and what this leaves unexplained."""

    texts: dict[str, str]
    #: Those of them that are to be named.
    named: dict[str, str]
    servers: tuple[str, ...]
    plan: Plan
    differences: tuple[Difference, ...]

    @property
    def cost(self) -> int:
        """How many rules are unexplained, those of others left out."""
        return sum(each.kind is not ChangeKind.FOREIGN for each in self.differences)

    def leaves(self, rulesets: Iterable[Ruleset]) -> bool:
        """Whether there are rules in our tables that the plan does not have, or the other way round."""
        tables = (table for ruleset in rulesets for table in ruleset.tables)
        there = sum(table.rule_count for table in tables if table.name in OWNERSHIP.tables)
        return self.cost > 0 or there != self.plan.state.rule_count


def _search(readings: Readings, rulesets: Sequence[Ruleset]) -> _Trial:
    """The best of the trials: each setting's other readings in turn, kept where less is left."""
    best = _try({name: texts[0] for name, texts in readings.items()}, rulesets)
    left = min(_MOST_TRIES, _MOST_RULES // (best.plan.state.rule_count or 1))
    better = True
    while better:
        better = False
        for name, texts in readings.items():
            fixed = name in {SERVERS, "native_nftables"}
            default = () if fixed else (setting(name).default,)
            for text in dict.fromkeys((*texts, *default)):
                if not best.cost or not left:
                    return best
                if text == best.texts[name]:
                    continue
                left -= 1
                with suppress(UsageProblems):
                    trial = _try(best.texts | {name: text}, rulesets)
                    if trial.cost < best.cost:
                        best, better = trial, True
    return best


def _try(texts: dict[str, str], rulesets: Sequence[Ruleset]) -> _Trial:
    """What these settings make; raises UsageProblems for those that can't be together."""
    listed = texts.get(SERVERS, "")
    servers = tuple(listed.split(",")) if listed else ()
    machine = StandIn(servers=servers, names=ThisHost())
    named = {
        name: text
        for name, text in texts.items()
        if name != SERVERS and text != setting(name).default
    }
    config, values = _configured(named, machine)
    idle = set(_not_to_be_named(config, machine))
    if idle & named.keys() or (config.dns_servers_file and named):
        named = {name: text for name, text in named.items() if name not in idle}
        if config.dns_servers_file:
            named["resolv_conf"] = RESOLV_CONF
        config, values = _configured(named, machine)
    state = build(config)
    plan = Plan(state, config, values)
    return _Trial(texts, named, servers, plan, _differences(plan, rulesets))


def _differences(plan: Plan, rulesets: Sequence[Ruleset]) -> tuple[Difference, ...]:
    """What *plan* leaves unexplained."""
    if plan.config.native_nftables:
        return diff_natively(plan, rulesets)
    families = {each.family for each in rulesets}
    wanted = tuple(each for each in plan.rulesets if each.family in families)
    return diff_rulesets(rulesets, wanted, find_owned)


def _configured(named: Mapping[str, str], machine: Host) -> tuple[Config, Mapping[str, Value]]:
    values, _ = gather({"ip_family": "dual", **named, "dry_run": "true"}, {})
    config, _ = configure(values, machine, plan_counts=False)
    return config, values


def _not_to_be_named(config: Config, machine: Host) -> Iterator[str]:
    """The settings that leave no trace in the rules of *config*, or only that of the default."""
    if config.mode is not Mode.TPROXY:
        yield from ("istio_inbound_tproxy_mark", "istio_inbound_tproxy_route_table")
    if config.inbound_ports is not ALL:
        yield "istio_local_exclude_ports"
    if config.owner_groups is not ALL:
        yield "istio_outbound_owner_groups_exclude"
    if not config.redirect_dns:
        yield "capture_all_dns"
    if config.proxy_gids == config.proxy_uids:
        yield "proxy_gid"
    default, _ = _configured({}, machine)
    if config.proxy_uids == default.proxy_uids:
        yield "proxy_uid"
