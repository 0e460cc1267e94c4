"""One call of ``inject`` with many manifests beside one with one: the table of ``make bench``.

    python -m tests.bench.manifests [MANIFESTS]

Each figure is the best of three runs. Beside the time of the clock stands that of the processor, which
a busy machine changes less.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

CLI = str(Path(sys.executable).with_name("istio-iptables"))
RUNS = 3
MANIFEST = """\
# The shop's front
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web{number}   # in every cluster
  namespace: shop
spec:
  replicas: 3
  selector:
    matchLabels: {{app: web}}
  template:
    metadata:
      labels:
        app: web
      annotations:
        # not the database
        traffic.sidecar.istio.io/excludeOutboundPorts: "3306"
    spec:
      containers:
      - name: web
        image: nginx:1.27
        ports:
        - containerPort: 8080
        env:
        - name: MODE
          value: "on"
        readinessProbe:
          httpGet: {{path: /ready, port: 8080}}
        resources:
          requests: {{cpu: 100m, memory: 64Mi}}
"""


def _inject(text: str) -> tuple[float, float, int]:
    """The milliseconds of the clock and of the processor that one call takes, and the pods in its answer."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    result = subprocess.run(
        (CLI, "inject", "-f", "-"), input=text, capture_output=True, text=True, check=True
    )
    took, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = sum(after[:2]) - sum(before[:2])
    return took * 1000, processor * 1000, result.stdout.count("name: istio-proxy\n")


def main(count: int) -> None:
    """Print the table."""
    print(f"{'inject, in one call':<24}{'ms':>10}{'processor':>12}{'ms each':>10}{'processor':>12}")
    for number in (1, count):
        text = "---\n".join(MANIFEST.format(number=each) for each in range(number))
        runs = [_inject(text) for _ in range(RUNS)]
        assert {pods for _, _, pods in runs} == {number}, runs
        clock, processor = (min(each[column] for each in runs) for column in (0, 1))
        label = f"{number} manifest{'s' * (number > 1)}"
        print(
            f"{label:<24}{clock:>10.0f}{processor:>12.0f}"
            f"{clock / number:>10.2f}{processor / number:>12.2f}"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
