"""``python -m istio_iptables`` is the same as ``istio-iptables``."""

import sys

from istio_iptables.cli import main

if __name__ == "__main__":
    sys.exit(main())
