"""The golden texts against the only judge that counts: what the kernel says after loading them."""

from __future__ import annotations

import pytest

from istio_iptables.netfilter.model import Family
from tests.golden import Case, cases
from tests.namespaces import BACKENDS, Step, inside, program, rules_of

pytestmark = pytest.mark.kernel

#: tests/kernel/test_native.py has the others.
SAVED = [
    case for case in cases() if case.format == "save" and "--native-nftables" not in case.arguments
]


def by_family(text: str) -> dict[Family, str]:
    """The documents of a dry run, by family."""
    documents = {}
    for family in Family:
        mark = f"# {family.title}\n"
        if mark in text:
            documents[family] = text.partition(mark)[2].partition("# IPv6\n")[0]
    return documents


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", SAVED, ids=lambda case: case.name)
def test_the_kernel_says_the_golden_text(case: Case, backend: str) -> None:
    """What `--format restore` prints, once loaded, is saved as the expected text."""
    expected = by_family(case.expected)
    steps = []
    for family in expected:
        only = case._replace(
            arguments=[*case.arguments, "--format", "restore", "--only", family.value]
        ).run()
        restore = program(family, backend, "restore")
        steps += [Step([restore, "--noflush"], only.out), Step([program(family, backend, "save")])]
    done = inside(steps)
    assert [(each.status, each.err) for each in done] == [(0, "")] * len(done)
    for family, saved in zip(expected, done[1::2], strict=True):
        assert rules_of(saved.out) == rules_of(expected[family])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "name", ["documented-tproxy-dual-stack", "virtual-interfaces-with-cidrs", "dns-tproxy"]
)
@pytest.mark.parametrize("form", ["save", "annotated", "restore"])
def test_every_loadable_format_loads(name: str, form: str, backend: str) -> None:
    """Save text, annotated text and restore text all end as the same rules."""
    (case,) = (each for each in SAVED if each.name == name)
    for family, expected in by_family(case.expected).items():
        text = case._replace(
            arguments=[*case.arguments, "--format", form, "--only", family.value]
        ).run()
        load, saved = inside(
            (
                Step([program(family, backend, "restore")], text.out),
                Step([program(family, backend, "save")]),
            )
        )
        assert (load.status, load.err) == (0, "")
        assert rules_of(saved.out) == rules_of(expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "name",
    ["documented-tproxy-dual-stack", "odd-interface-names", "virtual-and-excluded-interfaces"],
)
def test_a_shell_runs_the_commands(name: str, backend: str) -> None:
    """A shell given the text of `--format commands` makes the rules, the routes and ::6."""
    (case,) = (each for each in SAVED if each.name == name)
    script = case._replace(arguments=[*case.arguments, "--format", "commands"]).run().out
    families = by_family(case.expected)
    # The commands name iptables; which backend that is, the system decides.
    functions = "".join(
        f'{tool}() {{ {tool}-{backend} "$@"; }}\n' for tool in ("iptables", "ip6tables")
    )
    shell, *saved, rule, route, address = inside(
        [
            Step(["sh", "-ec", f"ip link set lo up\n{functions}{script}"]),
            *(Step([program(family, backend, "save")]) for family in families),
            Step(["ip", "rule"]),
            Step(["ip", "-6", "route", "show", "table", "133"]),
            Step(["ip", "-6", "addr", "show", "dev", "lo"]),
        ]
    )
    assert (shell.status, shell.err) == (0, "")
    for text, expected in zip(saved, families.values(), strict=True):
        assert rules_of(text.out) == rules_of(expected)
    if "tproxy" in name:
        assert "fwmark 0x539 lookup 133" in rule.out
        assert "local default dev lo" in route.out
        assert "inet6 ::6/128" in address.out
