"""Each example of the help, run as it stands, by a shell in a namespace with the files it names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
import trustme

from istio_iptables.commands.options import SettingsCommand
from istio_iptables.commands.root import root
from tests.namespaces import why_not

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(bool(why_not()), reason=why_not())]

_FILES = {
    "web.yaml": """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: web, image: "web:1", ports: [{containerPort: 8080}]}]
""",
    "values.yaml": "global: {proxy: {excludeIPRanges: 10.1.0.0/16}}\n",
    "mesh.yaml": "defaultConfig: {interceptionMode: TPROXY}\n",
    "saved.rules": "*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n",
    "pod.save": "*nat\n:OUTPUT ACCEPT [0:0]\n[7:420] -A OUTPUT -p tcp -j ACCEPT\nCOMMIT\n",
    "rules.golden": "",
}
#: A namespace called blue, and one address in the present one; /run is the test's own.
_SETUP = (
    "mount -t tmpfs none /run && ip netns add blue && ip link set lo up &&"
    " ip address add 10.0.0.1/32 dev lo && "
)


def _examples() -> Iterator[object]:
    context = click.Context(root)
    commands = (root.get_command(context, name) for name in root.list_commands(context))
    for command in (root, *commands):
        assert isinstance(command, SettingsCommand)
        for example in command.examples:
            yield pytest.param(example.line, id=example.line)


@pytest.fixture(scope="module")
def certificate() -> trustme.LeafCert:
    """What a server shows whom nobody asks."""
    return trustme.CA().issue_cert("localhost")


@pytest.mark.parametrize("line", [*_examples()])
def test_an_example_works(line: str, tmp_path: Path, certificate: trustme.LeafCert) -> None:
    """It is answered, with yes or no, and without an error; a server runs until it is asked to end."""
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "C")
    certificate.private_key_pem.write_to_path(tmp_path / "K")
    for name, text in _FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    if line.startswith("istio-iptables webhook"):
        line = f"timeout --preserve-status 2 {line}"
    script = _SETUP + line.replace("/4711/", "/$$/")
    done = subprocess.run(
        ("unshare", "--net", "--mount", "bash", "-c", script),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"},
        check=False,
        timeout=120,
    )
    assert done.returncode in {0, 1}, done.stderr
    assert "error:" not in done.stderr
