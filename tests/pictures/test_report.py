"""The page of ``istio-iptables report``: what is in it, and what a browser makes of it."""

from __future__ import annotations

import random
import re
from html import escape
from typing import TYPE_CHECKING, Any, Never

import pytest

from istio_iptables import Capture, explain, plan
from istio_iptables.api.reporting import report
from istio_iptables.commands.root import run as run_command
from istio_iptables.errors import CannotTell, IstioIptablesError
from tests.pictures.conftest import script
from tests.program import run

if TYPE_CHECKING:
    from pathlib import Path

    from selenium.webdriver import Chrome

    from istio_iptables.api.capture import Plan

_LIMIT = 500_000
_HOSTILE = """*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:ISTIO_OUTPUT - [0:0]
-A OUTPUT -j ISTIO_OUTPUT
-A OUTPUT -m comment --comment "</script><script>document.title='bad'</script><img src=x onerror=alert(1)>" -j ACCEPT
-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
COMMIT
"""
_MANIFEST = """apiVersion: v1
kind: Pod
metadata:
  name: web
  annotations:
    traffic.sidecar.istio.io/excludeOutboundIPRanges: "2001:db8::/32"
spec:
  containers:
  - name: web
    image: web
"""
#: A chain of others that is not followed.
_AT_A_DEVICE = """table netdev other {
	chain first {
		type filter hook ingress device "eth0" priority filter; policy accept;
		tcp dport 80 drop
	}
}
"""


def _plan(**settings: Any) -> Plan:
    given = {
        "istio_service_cidr": "*",
        "istio_inbound_ports": "*",
        "istio_local_exclude_ports": "15090,15021,15020",
        "ip_family": "ipv4",
    }
    return plan(Capture(**{**given, **settings}))


def _report(made: Plan) -> str:
    return report(made, made.rulesets, name="the plan").html


def _open(browser: Chrome, page: str, folder: Path, width: int = 1280) -> None:
    path = folder / "page.html"
    path.write_text(page, "utf-8")
    _complaints(browser)  # of other pages
    browser.set_window_size(width, 900)
    browser.get(path.as_uri())


def _complaints(browser: Chrome) -> list[str]:
    """What the page's scripts or the browser found wrong."""
    found = browser.get_log("browser")  # type: ignore[no-untyped-call]
    return [each["message"] for each in found]


def test_all_parts_are_there() -> None:
    """Settings with their sources, picture, traffic, rules with reasons, and findings."""
    page = _report(_plan())
    for part in ("findings", "settings", "picture", "traffic", "follow", "rules"):
        assert f'id="{part}"' in page
    assert "--istio-local-exclude-ports" in page
    assert "All other outbound TCP connections" in page
    assert "captured outbound on port 15001" in page
    assert "<svg" in page
    assert len(page) < _LIMIT


def test_the_page_of_a_manifest(tmp_path: Path) -> None:
    """Its title names the pod; what was warned of stands in it; defaults of injection stand apart."""
    manifest = tmp_path / "web.yaml"
    manifest.write_text(_MANIFEST)
    target = tmp_path / "page.html"
    done = run(["report", "--pod", str(manifest), "--ip-family", "ipv4", "-o", str(target)])
    page = target.read_text()
    assert f"<h1>Traffic capture of Pod web ({manifest})</h1>" in page
    assert "2001:db8::/32" in done.err
    assert "IPv6 is off, which leaves 2001:db8::/32 without a rule</p>" in page
    assert "Nothing is wrong." not in page
    given, _, injected = page.partition("Defaults of Istio's injection.")
    given = given.partition("Settings that were given.")[2]
    assert "--istio-service-exclude-cidr" in given
    assert "--envoy-port" not in given
    assert "default of mesh proxyListenPort" in injected
    again = tmp_path / "again.html"
    run(["report", "--pod", str(manifest), "--ip-family", "ipv4", "-o", str(again)])
    assert again.read_text() == page


def test_the_page_needs_nothing_else() -> None:
    """No address in it is one that a browser would load."""
    page = _report(_plan())
    assert "default-src 'none'" in page
    found = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert found
    assert all(each.startswith("#") for each in found)


def test_native_rules_have_a_page(tmp_path: Path) -> None:
    """The page of native nftables rules has all parts too."""
    target = tmp_path / "page.html"
    run_command(["report", "-i", "*", "--native-nftables", "-o", str(target)])
    page = target.read_text()
    assert "inet istio-proxy-nat istio-output 9" in page
    assert 'id="packet"' in page


def test_what_was_not_seen_is_said(tmp_path: Path) -> None:
    """In the page, on stderr, and with --strict it is a refusal that writes nothing."""
    saved = tmp_path / "saved"
    native = run(["-n", "--native-nftables", "-i", "*", "--ip-family", "dual"]).out
    saved.write_text(native + _AT_A_DEVICE)
    target = tmp_path / "page.html"
    words = ["report", "--rules", str(saved), "-o", str(target)]
    done = run(words)
    assert done.status == 0
    assert done.warnings
    page = target.read_text()
    assert all(escape(each, quote=False) in page for each in done.warnings)
    target.unlink()
    assert run([*words, "--strict"]).status == 2
    assert not target.exists()


def test_a_page_without_traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where traffic can't be divided the page says why, and has the rest."""
    reason = "too many packets"

    def refuse(*_: object, **__: object) -> Never:
        raise CannotTell(reason)

    monkeypatch.setattr("istio_iptables.api.reporting.matrix", refuse)
    page = _report(_plan())
    assert reason in page
    assert 'id="packet"' not in page
    assert "ISTIO_IN_REDIRECT" in page


@pytest.mark.parametrize("what", ["istio_local_exclude_ports", "istio_service_exclude_cidr"])
def test_many_rules_stay_small(what: str) -> None:
    """Thousands of rules make no page that nobody can open; it says what it leaves out."""
    numbers = range(1, 3001)
    networks = ",".join(f"10.{each // 250}.{each % 250}.0/24" for each in numbers)
    ports = ",".join(map(str, numbers))
    page = _report(_plan(**{what: ports if what.endswith("ports") else networks}))
    assert len(page) < _LIMIT
    assert "more rules are not listed here" in page


def test_a_page_is_written_whole_or_not_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file stays as it was if the page can't be made or written, and nothing else is left."""
    target = tmp_path / "page.html"
    before = "<!doctype html>\nbefore"
    target.write_text(before)
    target.chmod(0o640)
    with pytest.raises(IstioIptablesError):
        run_command(["report", "--rules", str(tmp_path / "none"), "-o", str(target)])
    assert target.read_text() == before
    with pytest.raises(IstioIptablesError, match=r"--output: .*/none/page\.html: No such file"):
        run_command(["report", "-i", "*", "-o", str(tmp_path / "none" / "page.html")])
    with pytest.raises(IstioIptablesError, match=r"^--output \(-o\): is missing: "):
        run_command(["report", "-i", "*"])
    link = tmp_path / "link"
    link.symlink_to(link)
    with pytest.raises(IstioIptablesError, match=r"^--output: .*/link: .*(Symlink|symbolic)"):
        run_command(["report", "-i", "*", "-o", str(link)])
    link.unlink()
    run_command(["report", "-i", "*", "-o", str(target)])
    assert target.read_text().startswith("<!DOCTYPE html>")
    assert target.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [target]
    capsys.readouterr()
    run_command(["report", "-i", "*", "-o", "-"])
    assert capsys.readouterr().out.startswith("<!DOCTYPE html>")


def test_an_output_that_is_meant_otherwise(tmp_path: Path) -> None:
    """-o is for ports elsewhere; and a file that is not a page is not overwritten."""
    (tmp_path / "kept.yaml").write_text(_MANIFEST)
    (tmp_path / "empty").touch()
    for output, reason in (
        ("3306,25", "'3306,25' looks like ports: those have --istio-local-outbound-ports-exclude"),
        ("80", "'80' looks like ports"),
        ("--rules", "'--rules' looks like an option: is the file before it missing?"),
        ("kept.yaml", "'kept.yaml' is there and is not an HTML page"),
    ):
        result = run(["report", "-i", "*", "-o", output], folder=tmp_path)
        assert result.status == 2
        (problem,) = result.errors
        assert problem.startswith(f"--output (-o): {reason}")
    assert run(["report", "-i", "*", "-o", "empty"], folder=tmp_path).status == 0
    assert {each.name for each in tmp_path.iterdir()} == {"kept.yaml", "empty"}
    assert (tmp_path / "kept.yaml").read_text() == _MANIFEST


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it(browser: Chrome, tmp_path: Path, width: int, scheme: str) -> None:
    """Nothing is wrong with it for axe (labels, contrast), in two widths and both colour schemes."""
    scheme_of = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme_of]})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    made = _plan()
    page = report(made, _HOSTILE, name="odd rules").html if width == 390 else _report(made)
    _open(browser, page, tmp_path)
    dark = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(13, 17, 23)") is (scheme == "dark")
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width
    # A table's heading is as wide as the table, and not one word a line.
    half = "return [...document.querySelectorAll('caption')].map(each => each.offsetWidth)"
    assert all(each > width / 2 for each in browser.execute_script(half))
    loaded = browser.execute_script("return performance.getEntriesByType('resource').length")
    assert loaded == 0
    browser.execute_script(script("axe.min.js") + "; window.axe = axe;")
    passes, found = browser.execute_async_script(
        "const done = arguments[0]; axe.run().then((found) => done([found.passes.length, found.violations]));"
    )
    assert passes > 15
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found] == []
    assert _complaints(browser) == []
    assert browser.title != "bad"
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_picture_fits(browser: Chrome, tmp_path: Path) -> None:
    """On a usual screen nothing of the chains is behind a scroll bar; on a small one they stay readable."""
    sizes = (
        "return (each => [each.scrollWidth, each.clientWidth])(document.querySelector('.scroll'))"
    )
    _open(browser, _report(_plan()), tmp_path, width=1300)
    wide, room = browser.execute_script(sizes)
    assert wide <= room
    _open(browser, _report(_plan()), tmp_path, width=600)
    wide, room = browser.execute_script(sizes)
    assert wide > room


def test_paper_has_no_form(browser: Chrome, tmp_path: Path) -> None:
    """What only a screen is for is not printed, and the picture is as wide as the paper."""
    _open(browser, _report(_plan()), tmp_path)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    shown = "return [...document.querySelectorAll('nav, #follow')].map(each => each.offsetHeight)"
    assert browser.execute_script(shown) == [0, 0]
    assert browser.execute_script("return document.querySelector('#rules').offsetHeight") > 0
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_the_keyboard_follows_a_packet(browser: Chrome, tmp_path: Path) -> None:
    """Tab reaches every part, and what is typed is answered; what is no packet is told so."""
    from selenium.webdriver import ActionChains, Keys

    _open(browser, _report(_plan()), tmp_path)
    reached = set()
    for _ in range(40):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        element = browser.switch_to.active_element
        reached.add(
            element.get_attribute("name") or element.get_attribute("href") or element.tag_name
        )
        if element.get_attribute("name") == "destination":
            ActionChains(browser).send_keys("127.0.0.1").perform()
            break
    assert {"direction", "protocol", "destination"} <= reached
    answer = browser.find_element("id", "answer")
    assert answer.text.startswith("tcp to 127.0.0.1 port 443: untouched")
    assert "this example of the same class" in answer.text
    # By lo, as explain has it.
    assert "nat ISTIO_OUTPUT 3" in answer.text
    ActionChains(browser).send_keys("x", Keys.ENTER).perform()
    assert answer.text == "127.0.0.1x is not an address to send to"
    assert _complaints(browser) == []


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ip_family": "dual"},
        {"istio_inbound_interception_mode": "TPROXY"},
        {
            "istio_service_exclude_cidr": "10.0.0.0/8,192.168.0.0/16",
            "istio_local_exclude_ports": "22,80",
        },
    ],
    ids=["documented", "dual", "tproxy", "excluded"],
)
def test_the_box_says_what_explain_says(
    browser: Chrome, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """For drawn packets the box has the rule and the fate that explain has."""
    made = _plan(**settings)
    _open(browser, _report(made), tmp_path)
    drawn = random.Random(7)  # noqa: S311 - packets, no secrets
    wrong = []
    for _ in range(150):
        six = settings.get("ip_family") == "dual" and drawn.random() < 0.5
        way = drawn.choice(["in", "out"])
        typed = {
            "direction": way,
            "protocol": drawn.choice(["tcp", "tcp", "udp"]),
            "destination": drawn.choice(
                ["fd00::5", "::1", "2001:db8::1"]
                if six
                else ["10.1.2.3", "127.0.0.1", "93.184.216.34", "192.168.9.9"]
            ),
            "destination_port": str(drawn.choice([22, 80, 443, 53, 15008, 15020, 15090])),
            "source": drawn.choice(["fd00::9", "::6"] if six else ["10.9.9.9", "127.0.0.6"]),
            "source_port": "4000",
            "interface": drawn.choice(["eth0", "lo"]),
            "uid": drawn.choice(["1000", "1337", "0"]),
            "gid": drawn.choice(["1000", "1337"]),
            "mark": drawn.choice(["0", "0x539"]),
            "connmark": drawn.choice(["0", "1337"]),
            "state": drawn.choice(["NEW", "ESTABLISHED"]),
        }
        if way == "in" and typed["destination"] in {"127.0.0.1", "::1"}:
            continue
        said = browser.execute_script(
            """
            for (const [name, text] of Object.entries(arguments[0])) form.elements[name].value = text;
            const packet = read();
            const group = data.classes.find((each) => fits(each, packet));
            return group ? [group.captured, group.to_port, group.rule] : `none of ${JSON.stringify(packet, (_, each) => typeof each === "bigint" ? String(each) : each)}`;
            """,
            typed,
        )
        host = "[{}]" if six else "{}"
        found = explain(
            made,
            incoming=way == "in",
            proto=typed["protocol"],
            src=f"{host.format(typed['source'])}:{typed['source_port']}",
            dst=f"{host.format(typed['destination'])}:{typed['destination_port']}",
            iface=typed["interface"],
            mark=typed["mark"],
            connmark=typed["connmark"],
            ctstate=typed["state"],
            uid=None if way == "in" else typed["uid"],
            gid=None if way == "in" else typed["gid"],
        )
        if isinstance(said, str) or said[:2] != [found.captured, found.to_port]:
            wrong.append((typed, said, found.verdict))
    assert wrong == []
