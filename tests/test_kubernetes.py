"""The manifest of the README and the CI jobs of docs/kubernetes.md: valid, and they do their work."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from tests.program import run
from tests.readme import README, ROOT

_FENCED = re.compile(r"^```(yaml|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = [
    block
    for path in (README, ROOT / "docs" / "kubernetes.md")
    for block in _FENCED.findall(path.read_text(encoding="utf-8"))
]
YAML: list[dict[Any, Any]] = [
    document for kind, text in BLOCKS if kind == "yaml" for document in yaml.safe_load_all(text)
]
(POD,) = (each for each in YAML if each.get("kind") == "Pod")
(WORKFLOW,) = (each for each in YAML if "jobs" in each)
(SHELL,) = (text for kind, text in BLOCKS if kind == "sh")
DOCUMENTED = (
    *("-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*"),
    *("-b", "*", "-d", "15090,15021,15020"),
)


def test_the_manifest_is_a_pod() -> None:
    """Kubernetes' own models know every field of it, and find nothing missing."""
    api = client.ApiClient()
    pod = api.deserialize(json.dumps(POD), "V1Pod", "application/json")
    # A field that the models don't know would be left out here.
    known = api.sanitize_for_serialization(pod)  # type: ignore[no-untyped-call]  # no types there
    assert known == POD


def test_the_manifest_runs_the_documented_arguments() -> None:
    """Its init container has the documented arguments, and the rights that it needs alone."""
    (init,) = POD["spec"]["initContainers"]
    assert tuple(init["args"]) == DOCUMENTED
    result = run([*init["args"], "--dry-run", "--ip-family", "ipv4"])
    assert (result.status, result.err) == (0, "")
    assert init["securityContext"]["capabilities"] == {
        "drop": ["ALL"],
        "add": ["NET_ADMIN", "NET_RAW"],
    }
    # The proxy is who the rules take it for, and the application is somebody else.
    users = {each["name"]: each["securityContext"] for each in POD["spec"]["containers"]}
    assert users["proxy"] == {"runAsUser": 1337, "runAsGroup": 1337}
    assert 1337 not in users["application"].values()


def _shell(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={"PATH": f"{program}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "script", [WORKFLOW["jobs"]["golden"]["steps"][-1]["run"], SHELL], ids=["actions", "shell"]
)
def test_the_job_tells_other_rules(tmp_path: Path, script: str) -> None:
    """The job's last step passes on the golden file, and fails with a diff on another."""
    golden = tmp_path / "pod.rules"
    golden.write_text(run(["--dry-run", "--ip-family", "ipv4", *DOCUMENTED]).out, encoding="utf-8")
    assert _shell(tmp_path, script).returncode == 0
    golden.write_text(
        golden.read_text(encoding="utf-8").replace("15021", "15022"), encoding="utf-8"
    )
    done = _shell(tmp_path, script)
    assert done.returncode == 1
    assert "+-A ISTIO_INBOUND -p tcp -m tcp --dport 15021 -j RETURN" in done.stdout.splitlines()


def test_the_workflow_has_its_parts() -> None:
    """Each step is an action or a script, and the scripts are valid shell."""
    # YAML reads the key `on` as true.
    assert set(WORKFLOW) == {"name", True, "jobs"}
    for step in WORKFLOW["jobs"]["golden"]["steps"]:
        assert ("uses" in step) is not ("run" in step)
        if "run" in step:
            done = subprocess.run(["bash", "-n", "-c", step["run"]], check=False)
            assert done.returncode == 0


def test_what_the_shell_says_to_do_helps(tmp_path: Path) -> None:
    """The command that the plain job prints makes the golden file that it wants."""
    (tmp_path / "pod.rules").write_text("# IPv4\n", encoding="utf-8")
    done = _shell(tmp_path, SHELL)
    assert done.returncode == 1
    command = done.stdout.splitlines()[-1].partition(": ")[2]
    assert _shell(tmp_path, command).returncode == 0
    assert _shell(tmp_path, SHELL).returncode == 0
