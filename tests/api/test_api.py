"""The API is what the commands do, and no more than a program wants of it."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import istio_iptables
from istio_iptables import (
    CannotTell,
    Capture,
    IstioIptablesError,
    UsageProblems,
    diff,
    explain,
    plan,
    render,
)
from istio_iptables.api.capture import CAPTURE_NAMES
from istio_iptables.api.rendering import FORMATS
from istio_iptables.errors import SaveFileError
from istio_iptables.settings.declarations import setting
from tests.program import run
from tests.strategies import given_settings

DOCUMENTED = Capture(
    istio_service_cidr="*",
    istio_inbound_ports="*",
    istio_local_exclude_ports="15090,15021,15020",
    ip_family="ipv4",
)


@pytest.mark.parametrize("name", FORMATS)
def test_render_is_what_a_dry_run_prints(name: str) -> None:
    """In every format; JSON also says how the settings were given."""
    words = ["-i", "*", "-b", "*", "-d", "15090,15021,15020", "--ip-family", "ipv4"]
    printed = run(["--dry-run", *words, "--format", name]).out
    text = render(plan(DOCUMENTED), name)
    if name == "json":
        ours, theirs = json.loads(text), json.loads(printed)
        given = {key: each["value"] for key, each in ours.pop("settings").items()}
        asked = {key: each["value"] for key, each in theirs.pop("settings").items()}
        assert {**given, "format": "json"} == asked
        assert ours == theirs
    else:
        assert text == printed


def test_render_knows_its_formats() -> None:
    """Another one is the caller's mistake."""
    with pytest.raises(ValueError, match="no format 'yaml': there are save, restore"):
        render(plan(DOCUMENTED), "yaml")


@given(given_settings(), st.data())
def test_keywords_are_flags(texts: dict[str, str], data: st.DataObject) -> None:
    """The same texts by keyword and by environment make the same plan."""
    texts = {name: text for name, text in texts.items() if name in CAPTURE_NAMES}
    texts["ip_family"] = data.draw(st.sampled_from(("ipv4", "dual")))
    texts["resolv_conf"] = "/dev/null"
    by_keyword = plan(Capture(**texts))
    variables = {
        setting(name).environment[-1]: text
        for name, text in texts.items()
        if setting(name).environment
    }
    rest = {name: text for name, text in texts.items() if not setting(name).environment}
    by_variable = plan(Capture.from_environment(variables, **rest))
    assert by_keyword.state == by_variable.state
    assert by_keyword.config == by_variable.config


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("envoy_port", 15001, "15001"),
        ("redirect_dns", True, "true"),
        ("dual_stack", False, "false"),
        ("istio_local_exclude_ports", [15090, "15021:15025"], "15090,15021:15025"),
        ("istio_exclude_interfaces", ("eth0", "br+"), "eth0,br+"),
        ("istio_service_exclude_cidr", (), ""),
        ("istio_service_cidr", ip_network("10.0.0.0/8"), "10.0.0.0/8"),
        ("istio_service_cidr", [ip_network("10.0.0.0/30"), "fd00::/8"], "10.0.0.0/30,fd00::/8"),
        ("proxy_uid", range(5, 7), "5,6"),
        ("resolv_conf", Path("/dev/null"), "/dev/null"),
    ],
)
def test_python_values(name: str, value: Any, text: str) -> None:
    """Numbers, booleans and lists are the texts that a user would write."""
    assert Capture(**{name: value}).texts[name] == text
    assert Capture(**{name: value}) == Capture(**{name: text})


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("istio_inbound_ports", b"80", "a bytes is not a value of this setting"),
        ("istio_inbound_ports", [True], "a bool is not a value of this setting"),
        ("istio_inbound_ports", None, "a NoneType is not a value of this setting"),
        ("istio_inbound_ports", [["80"]], "a list is not a value of this setting"),
        pytest.param("istio_inbound_ports", 10**5000, "the number is too large", id="large"),
        ("resolv_conf", True, "True is a boolean, which only a switch can be"),
        ("network_namespace", [], "a list is not a value of this setting"),
        ("envoy_port", {15001}, "a set is not a value of this setting"),
    ],
)
def test_values_that_no_setting_has(name: str, value: Any, reason: str) -> None:
    """They are problems as bad texts are, told with these."""
    with pytest.raises(UsageProblems) as caught:
        Capture(**{name: value, "inbound_capture_port": "x"})
    assert caught.value.lines[0] == f"{name}: {reason}"
    assert caught.value.lines[1].startswith("inbound_capture_port: 'x'")


def test_errors_go_to_other_processes() -> None:
    """As a pool of processes sends them."""
    for error in (UsageProblems(["a", "b"]), SaveFileError(3, "no"), IstioIptablesError("x")):
        again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
        assert (type(again), again.lines) == (type(error), error.lines)


def test_whose_envoy_runs_is_part_of_a_capture() -> None:
    """Two captures that make different plans are not equal."""
    as_root = Capture.from_environment({"ENVOY_USER": "root"})
    assert as_root != Capture()
    assert repr(as_root) == "Capture(ENVOY_USER='root')"


def test_a_text_without_tables_is_not_no_rules() -> None:
    """It is what iptables-save prints without the privilege."""
    wanted = plan(DOCUMENTED)
    for ask in (lambda: diff(wanted, ""), lambda: explain(wanted, "", dst="1.2.3.4:80")):
        with pytest.raises(CannotTell, match="the text: holds no table of iptables-save"):
            ask()
    assert diff(wanted, "\ufeff" + render(wanted)) == []


def test_families_that_are_not_compared_are_told() -> None:
    """An IPv4 text says nothing about the plan's IPv6 rules."""
    both = plan(Capture(istio_service_cidr="*", ip_family="dual"))
    found = diff(both, render(both, family="ipv4"))
    assert found == []
    assert found.warnings == ("the text has no IPv6 rules: those of the plan are not compared",)
    with pytest.raises(UsageProblems, match="--family: the addresses are those of IPv4"):
        explain(both, dst="1.2.3.4:80", family="ipv6")


def test_unknown_keywords() -> None:
    """Also those of settings that say how to print or apply."""
    for name in ("istio_service_cidrs", "dry_run", "format", "reconcile"):
        with pytest.raises(TypeError, match=f"Capture\\(\\) has no setting '{name}'"):
            Capture(**{name: "1"})


def test_every_problem_is_a_line() -> None:
    """Of values alone, and of values together."""
    with pytest.raises(IstioIptablesError) as caught:
        Capture(envoy_port=0, istio_inbound_ports="x,80", proxy_uid=",")
    assert [line.partition(":")[0] for line in caught.value.lines] == [
        "envoy_port",
        "istio_inbound_ports, item 1",
        "proxy_uid",
    ]
    assert isinstance(caught.value, UsageProblems)


def test_the_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it is asked for."""
    monkeypatch.setenv("ISTIO_SERVICE_CIDR", "10.0.0.0/8")
    monkeypatch.setenv("DRY_RUN", "no boolean")
    assert Capture().texts["istio_service_cidr"] == ""
    asked = Capture.from_environment()
    assert asked.texts["istio_service_cidr"] == "10.0.0.0/8"
    assert asked.warnings == []


def test_differences_are_a_list() -> None:
    """Empty if there are none; each is what diff --against prints."""
    wanted = plan(DOCUMENTED)
    text = render(wanted)
    assert diff(wanted, text) == []
    found = diff(wanted, text.replace("-A OUTPUT -j ISTIO_OUTPUT\n", ""))
    assert [each.kind.name for each in found] == ["MISSING"]
    assert diff(wanted, wanted.rulesets) == []
    with pytest.raises(IstioIptablesError, match="the text: line 1"):
        diff(wanted, "no rules")


def test_explain_is_what_the_command_says() -> None:
    """Numbers may be numbers."""
    words = ["-i", "*", "-b", "*", "-d", "15090,15021,15020", "--ip-family", "ipv4"]
    for flags, fields in (
        (["--dst", "1.2.3.4:80"], {"dst": "1.2.3.4:80"}),
        (["--uid", "1337"], {"uid": 1337}),
        (["--in", "--dst", ":15021"], {"incoming": True, "dst": ":15021"}),
        (["--proto", "udp", "--mark", "0x5"], {"proto": 17, "mark": 5}),
    ):
        given_fields: dict[str, Any] = fields
        answer = explain(plan(DOCUMENTED), **given_fields)
        assert run(["explain", *words, *flags]).out == answer.text()
        assert answer.as_json()["verdict"] == answer.verdict


def test_a_text_of_rules_is_followed_too() -> None:
    """The plan's settings say who Envoy is."""
    wanted = plan(DOCUMENTED)
    text = render(wanted).replace("--to-ports 15001", "--to-ports 15009")
    assert explain(wanted, text, dst="1.2.3.4:80").to_port == 15009


def test_what_importing_it_loads() -> None:
    """None of what it may do without; every name is there, and nothing else."""
    program = (
        "import sys, istio_iptables as api\n"
        "heavy = {'click', 'iptc', 'pyroute2', 'json', 'subprocess', 'ctypes'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from istio_iptables import Capture, plan, render, diff, explain\n"
        "text = render(plan(Capture(istio_service_cidr='*', ip_family='ipv4')))\n"
        "assert text.startswith('# IPv4')\n"
        "from istio_iptables import install, clean\n"
        "assert not {'click', 'iptc', 'pyroute2'} & set(sys.modules)\n"
        "for name in api.__all__: getattr(api, name)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = istio_iptables.nothing
