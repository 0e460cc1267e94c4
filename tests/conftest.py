"""What holds for every test."""

from __future__ import annotations

import signal

from hypothesis import settings

# How long an example takes says more about who else uses the machine than about the program.
settings.register_profile("project", deadline=None)
settings.load_profile("project")

# A shell starts background jobs with SIGINT ignored, and every program under test would inherit
# that: one that is to end by it would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
