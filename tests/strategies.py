"""Hypothesis strategies: settings and the ways to give them, and foreign rulesets."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import strategies as st

from istio_iptables.netfilter.model import (
    BUILT_IN_CHAINS,
    Chain,
    Counters,
    Family,
    Match,
    Option,
    Rule,
    Ruleset,
    Table,
    Target,
    Term,
)
from istio_iptables.netfilter.savefile import LONG_NAMES
from istio_iptables.settings.config import Config, configure
from istio_iptables.settings.converters import MAX_ID
from istio_iptables.settings.declarations import SETTINGS, Setting, ValueKind, setting
from istio_iptables.settings.sources import gather

__all__ = [
    "FixedMachine",
    "configs",
    "given_settings",
    "kernel_rules",
    "machines",
    "rules",
    "rulesets",
    "spellings",
    "tables",
]


class FixedMachine(NamedTuple):
    """A machine whose answers are known (a ``settings.config.Machine``)."""

    ips: tuple[str, ...] = ("10.0.0.5",)
    servers: tuple[str, ...] = ()
    users: tuple[tuple[str, int], ...] = (("root", 0),)
    groups: tuple[tuple[str, int], ...] = (("root", 0),)

    def uid(self, name: str) -> int | None:
        """The uid of a user it knows."""
        return dict(self.users).get(name)

    def gid(self, name: str) -> int | None:
        """The gid of a group it knows."""
        return dict(self.groups).get(name)

    def addresses(self, namespace: str) -> tuple[str, ...]:  # noqa: ARG002 - the same in every one
        """Its addresses."""
        return self.ips

    def nameservers(self, resolv_conf: str) -> tuple[str, ...]:  # noqa: ARG002 - one file is all
        """Its DNS servers."""
        return self.servers


# The items of settings.

#: Ports that mean something somewhere in the rules, and the ends of what is possible.
_PORTS = (0, 1, 22, 53, 80, 443, 8080, 15001, 15006, 15008, 15020, 15053, 15090, 65535)

ports = st.one_of(st.sampled_from(_PORTS), st.integers(0, 65535))


@st.composite
def port_items(draw: st.DrawFn) -> str:
    """A port or a range, open ones too, as a user may write it."""
    first = draw(ports)
    if draw(st.integers(0, 3)):
        return str(first)
    last = draw(st.integers(first, 65535))
    low = draw(st.sampled_from([str(first), ""]))
    return f"{low}:{draw(st.sampled_from([str(last), ''])) if low else last}"


@st.composite
def networks_ipv4(draw: st.DrawFn) -> str:
    """An IPv4 network, host bits and all."""
    octets = draw(st.lists(st.sampled_from((0, 1, 10, 127, 192, 255)), min_size=4, max_size=4))
    return f"{'.'.join(map(str, octets))}/{draw(st.integers(0, 32))}"


@st.composite
def networks_ipv6(draw: st.DrawFn) -> str:
    """An IPv6 network in one of its many spellings."""
    groups = draw(st.lists(st.sampled_from((0, 0, 0, 1, 0xFD00, 0xFFFF)), min_size=8, max_size=8))
    text = ":".join(f"{group:{draw(st.sampled_from(['x', 'X', '04x']))}}" for group in groups)
    if draw(st.integers(0, 3)) == 0:
        text = draw(st.sampled_from(["::", "::1", "fd00::5", "::ffff:10.0.0.1", "::10.0.0.1"]))
    return f"{text}/{draw(st.integers(0, 128))}"


networks = st.one_of(networks_ipv4(), networks_ipv6())


@st.composite
def id_items(draw: st.DrawFn) -> str:
    """A uid or gid, a range of them, or a name that exists everywhere."""
    first = draw(st.one_of(st.sampled_from((0, 1337, 1338)), st.integers(0, MAX_ID)))
    if draw(st.integers(0, 4)):
        return draw(st.sampled_from([str(first), str(first), "root"]))
    return f"{first}{draw(st.sampled_from('-:'))}{draw(st.integers(first, MAX_ID))}"


interfaces = st.one_of(
    st.sampled_from(("eth0", "net1", "br+", "not-istio-nic", "+", "lo")),
    st.from_regex(
        r"[A-Za-z0-9_.#$%&(=?@~^*;<>|\[{][A-Za-z0-9_.#$%&(=?@~^*!;-]{0,13}\+?", fullmatch=True
    ).filter(lambda name: name not in {".", "..", "*"}),
)

numbers = st.one_of(
    st.sampled_from((1, 133, 1337, 1338, 2**32 - 1)), st.integers(1, 2**32 - 1)
).flatmap(lambda number: st.sampled_from((str(number), hex(number), f"0X{number:X}")))


def lists_of(items: st.SearchStrategy[str], most: int = 3) -> st.SearchStrategy[str]:
    """Items behind commas, with the blanks and empty items that are dropped."""
    separators = st.sampled_from((",", ",", ", ", ",,", " ,"))

    @st.composite
    def joined(draw: st.DrawFn) -> str:
        text = draw(st.sampled_from(("", "", " ", ",")))
        for number, item in enumerate(draw(st.lists(items, min_size=1, max_size=most))):
            text += (draw(separators) if number else "") + item
        return text + draw(st.sampled_from(("", "", ",", " ")))

    return joined()


def or_all(items: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Such a list, or everything, or nothing."""
    return st.one_of(st.just("*"), st.just(""), items)


_TEXTS: dict[ValueKind, st.SearchStrategy[str]] = {
    ValueKind.FLAG: st.sampled_from(("true", "false", "1", "0", "t", "F")),
    ValueKind.PORT: ports.filter(bool).map(str),
    ValueKind.TUNNEL_PORT: ports.map(str),
    ValueKind.PORTS: st.one_of(st.just(""), lists_of(port_items())),
    ValueKind.PORTS_OR_ALL: or_all(lists_of(port_items())),
    ValueKind.CIDR: st.integers(8, 32).map("127.0.0.1/{}".format),
    ValueKind.CIDRS: st.one_of(st.just(""), lists_of(networks)),
    ValueKind.CIDRS_OR_ALL: or_all(lists_of(networks)),
    ValueKind.UIDS: st.one_of(st.just(""), lists_of(id_items())),
    ValueKind.GIDS: st.one_of(st.just(""), lists_of(id_items())),
    ValueKind.GIDS_OR_ALL: or_all(lists_of(id_items())),
    ValueKind.INTERFACES: st.one_of(st.just(""), lists_of(interfaces)),
    ValueKind.MODE: st.sampled_from(("REDIRECT", "TPROXY")),
    ValueKind.NUMBER: numbers,
    ValueKind.IP_FAMILY: st.sampled_from(("ipv4", "dual")),
}

#: The settings that decide about the rules.
_DECIDING = tuple(
    each
    for each in SETTINGS
    if each.name
    in {
        "envoy_port",
        "inbound_capture_port",
        "inbound_tunnel_port",
        "proxy_uid",
        "proxy_gid",
        "istio_inbound_interception_mode",
        "istio_inbound_ports",
        "istio_local_exclude_ports",
        "istio_exclude_interfaces",
        "kube_virt_interfaces",
        "istio_inbound_tproxy_mark",
        "istio_inbound_tproxy_route_table",
        "drop_invalid",
        "istio_service_cidr",
        "istio_service_exclude_cidr",
        "istio_outbound_ports",
        "istio_local_outbound_ports_exclude",
        "istio_outbound_owner_groups",
        "istio_outbound_owner_groups_exclude",
        "istio_outbound_ipv4_loopback_cidr",
        "redirect_dns",
        "capture_all_dns",
    }
)


@st.composite
def given_settings(draw: st.DrawFn) -> dict[str, str]:
    """The texts of settings that somebody may give, by name; always a family, to be repeatable."""
    names = draw(st.sets(st.sampled_from([each.name for each in _DECIDING])))
    texts = {each.name: draw(_TEXTS[each.kind]) for each in _DECIDING if each.name in names}
    return texts | {"ip_family": draw(_TEXTS[ValueKind.IP_FAMILY])}


def _ways(each: Setting, text: str) -> list[list[str]]:
    """The ways to give a setting on the command line."""
    if each.kind is ValueKind.FLAG:
        names = [each.flag, *([f"-{each.short}"] if each.short else [])]
        plain = [[name] for name in names if text in {"1", "t", "T", "true", "TRUE", "True"}]
        return [*plain, *([f"{name}={text}"] for name in names)]
    ways = [[each.flag, text], [f"{each.flag}={text}"]]
    if each.short:
        ways += [[f"-{each.short}", text], [f"-{each.short}={text}"]]
        # -p15001; a text that is empty or starts with = would be read otherwise.
        ways += [[f"-{each.short}{text}"]] * (text[:1] not in {"", "="})
    return ways


@st.composite
def spellings(draw: st.DrawFn, texts: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment that give these settings, in one of the many ways."""
    words: list[list[str]] = []
    environ: dict[str, str] = {}
    for name, text in texts.items():
        each = setting(name)
        by_flag = draw(st.booleans())
        if each.on_command_line and (by_flag or not each.environment):
            words.append(draw(st.sampled_from(_ways(each, text))))
            shadowed = draw(st.booleans())
            if each.environment and shadowed:
                # Whatever a variable says, the flag counts.
                environ[draw(st.sampled_from(each.environment))] = draw(_TEXTS[each.kind])
        else:
            number = draw(st.integers(0, len(each.environment) - 1))
            environ[each.environment[number]] = text
            if number and draw(st.booleans()):
                environ[each.environment[0]] = draw(_TEXTS[each.kind])
    shuffled = draw(st.permutations(words))
    return [word for way in shuffled for word in way], environ


_ADDRESSES_IPV4 = st.sampled_from(("10.96.0.10", "127.0.0.53", "10.0.0.2"))
_ADDRESSES_IPV6 = st.sampled_from(("fd00::a", "::ffff:10.0.0.4", "fe80::53", "::127.0.0.53"))

machines = st.tuples(
    st.lists(_ADDRESSES_IPV4, max_size=2),
    st.lists(_ADDRESSES_IPV6, max_size=2),
    st.lists(st.one_of(_ADDRESSES_IPV4, _ADDRESSES_IPV6), max_size=3),
).map(lambda drawn: FixedMachine((*drawn[0], *drawn[1]), tuple(drawn[2])))


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """A Config that some settings make on some machine; for a dry run."""
    values, _ = gather(draw(given_settings()) | {"dry_run": "true"}, {})
    config, _ = configure(values, draw(machines))
    return config


# Rulesets, a foreign too.

_WORDS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp", "Zs", "Co")),
    min_size=1,
    max_size=12,
)
_NAMES = st.one_of(
    st.sampled_from(("tcp", "owner", "KUBE-SVC", "cali-PREROUTING", "cni0_x")),
    st.from_regex(r"[A-Za-z][A-Za-z0-9_.:-]{0,12}", fullmatch=True),
)
#: No extension has an option that iptables itself has: the parser would take it for its own.
_OPTION_NAMES = st.from_regex(r"--[a-z]{2,10}", fullmatch=True).filter(
    lambda name: name not in LONG_NAMES
)
#: What an option's value may be: a word, or something that needs quotes.
_VALUES = st.one_of(
    st.from_regex(r"[A-Za-z0-9_.:,/*+]{1,10}", fullmatch=True),
    st.sampled_from(
        ("-j", "!", "--dport", "a b", 'say "hi"', "back\\slash", "it's", "-m x", " ", "#")
    ),
    _WORDS,
).filter(lambda value: value[0] != "[")


@st.composite
def options(draw: st.DrawFn) -> Option:
    """An option of a match or target."""
    values = draw(st.lists(_VALUES, max_size=2))
    return Option(draw(_OPTION_NAMES), tuple(values), draw(st.booleans()))


def _terms(values: st.SearchStrategy[str]) -> st.SearchStrategy[Term | None]:
    return st.one_of(st.none(), st.none(), st.builds(Term, values, st.booleans()))


_HEADER_VALUES = st.from_regex(r"[A-Za-z0-9_.:/+]{1,12}", fullmatch=True)

# st.builds(Rule, ...) would make up the fields that are left out here, too.
rules = st.tuples(
    *[_terms(_HEADER_VALUES)] * 5,
    _terms(st.just("")),
    st.lists(st.builds(Match, _NAMES, st.lists(options(), max_size=3).map(tuple)), max_size=3).map(
        tuple
    ),
    st.one_of(
        st.none(),
        st.builds(Target, _NAMES, st.lists(options(), max_size=2).map(tuple), st.booleans()),
    ),
).map(lambda fields: Rule(*fields))

_COUNTS = st.sampled_from((0, 1, 1372, 2**63))
_COUNTERS = st.builds(Counters, _COUNTS, _COUNTS)


@st.composite
def tables(draw: st.DrawFn, name: str = "nat", made_of: st.SearchStrategy[Rule] = rules) -> Table:
    """A table with its built-in chains and some foreign ones."""
    own = draw(st.lists(_NAMES, max_size=3, unique=True))
    policies = st.sampled_from(("ACCEPT", "DROP"))
    chains: list[tuple[str, str | None]] = [
        (each, draw(policies)) for each in BUILT_IN_CHAINS[name]
    ]
    chains += [(chain, None) for chain in own if chain not in BUILT_IN_CHAINS[name]]
    # Rules are dear to draw: a few stand in several places, as they may on a machine.
    some = st.sampled_from(draw(st.lists(made_of, min_size=1, max_size=3)))
    return Table(
        name,
        tuple(
            Chain(chain, policy, tuple(draw(st.lists(some, max_size=3))), draw(_COUNTERS))
            for chain, policy in chains
        ),
    )


_COMMENTS = st.lists(
    st.one_of(st.just(""), _WORDS.map("# {}".format), st.just("# Completed on Thu May 22")),
    max_size=2,
).map(tuple)


@st.composite
def rulesets(draw: st.DrawFn) -> Ruleset:
    """Whatever a machine may have in its tables, with comments and counters."""
    names = draw(st.lists(st.sampled_from(tuple(BUILT_IN_CHAINS)), unique=True, max_size=3))
    counted = rules.flatmap(
        lambda rule: st.one_of(st.just(rule), _COUNTERS.map(lambda c: rule._replace(counters=c)))
    )
    found = [draw(tables(name, counted))._replace(comments=draw(_COMMENTS)) for name in names]
    return Ruleset(draw(st.sampled_from(Family)), tuple(found), draw(_COMMENTS))


#: Foreign rules in the kernel's own spelling, for any chain of any family's nat.
kernel_rules = st.sampled_from(
    [
        "-m conntrack --ctstate ESTABLISHED -j ACCEPT",
        "-p tcp -m tcp --dport 8080 -j ACCEPT",
        '-p udp -m comment --comment "a stranger\\\'s: \\"quoted\\"" -j ACCEPT',
        "-m mark --mark 0x1/0xff -j RETURN",
        "-p tcp -m multiport --dports 80,443 -j ACCEPT",
        "-j RETURN",
        "-p tcp -m tcp --dport 9000 -m comment --comment plain",
    ]
).map(lambda text: Rule(verbatim=text))
