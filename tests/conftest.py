"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

# How long an example takes says more about who else uses the machine than about the program.
settings.register_profile("project", deadline=None)
settings.load_profile("project")
