"""Images for tests: a Debian made with debootstrap, our Dockerfile built on it, and run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.lab import syscalls as kernelcalls

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["BASE", "CAPABILITIES", "Container", "Ran", "Store", "inside", "make_base", "why_not"]

PROJECT = Path(__file__).parents[2]
BASE = "docker.io/library/debian:trixie-slim"
_RELEASE = "trixie"
_BUILT_FROM = (
    *("Dockerfile", ".dockerignore", "pyproject.toml", "LICENSE"),
    *("constraints.txt", "docs/pypi.md"),
)

#: What Istio's template gives its init container: NET_ADMIN and NET_RAW.
CAPABILITIES = (12, 13)

#: What Debian's slim images leave out, of packages too that are installed later.
_NOT_IN_SLIM = ("doc", "man", "info", "locale", "lintian")
#: As theirs too: packages are not synced to the disk, file by file.
_DPKG = "".join(
    ("force-unsafe-io\n", *(f"path-exclude /usr/share/{each}/*\n" for each in _NOT_IN_SLIM))
)

#: The machine's own certificate authorities, if it has any: a mirror may be behind one.
_AUTHORITIES = Path("/usr/local/share/ca-certificates")


def why_not() -> str:
    """The reason why no image can be built here; "" if one can."""
    if os.geteuid() != 0:
        return "needs root, to make a Debian"
    missing = [tool for tool in ("debootstrap", "buildah") if shutil.which(tool) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def make_base(folder: Path, room: Path) -> Path:
    """A tar file of Debian as its slim image has it, in *folder*; one that is there is kept.

    It is made in *room*.
    """
    made = folder / f"{_RELEASE}-slim.tar"
    if made.exists():
        return made
    root = room / "base"
    subprocess.run(
        ["debootstrap", "--variant=minbase", _RELEASE, str(root)],
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=400,
    )
    for name in _NOT_IN_SLIM:
        shutil.rmtree(root / "usr/share" / name, ignore_errors=True)
    for leftover in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(root / leftover)
        (root / leftover / "partial").mkdir(parents=True)
    (root / "etc/dpkg/dpkg.cfg.d/slim").write_text(_DPKG, encoding="utf-8")
    unfinished = folder / "unfinished.tar"
    subprocess.run(["tar", "-C", str(root), "-cf", str(unfinished), "."], check=True)
    unfinished.rename(made)
    shutil.rmtree(root)
    return made


class Store:
    """A place of its own for images."""

    def __init__(self, folder: Path) -> None:
        # A copy, so that every build of this store is of the same source.
        self._source = folder / "source"
        self._source.mkdir()
        (self._source / "docs").mkdir()
        for name in _BUILT_FROM:
            shutil.copy(PROJECT / name, self._source / name)
        package = "istio_iptables"
        shutil.copytree(PROJECT / package, self._source / package)
        places = ["--root", str(folder / "root"), "--runroot", str(folder / "run")]
        self._words = ["buildah", *places]
        # Twice as quick as copies, where the file system below lets it be.
        overlay = [*self._words, "--storage-driver", "overlay", "info"]
        done = subprocess.run(overlay, capture_output=True, check=False)
        self._words += ["--storage-driver", "vfs" if done.returncode else "overlay"]

    def buildah(self, *words: str) -> str:
        """What buildah says to these words."""
        done = subprocess.run(
            [*self._words, *words], capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout.strip()

    def load_base(self, tar: Path) -> None:
        """Make the image that the Dockerfile starts from."""
        container = self.buildah("from", "scratch")
        self.buildah("add", "--quiet", container, str(tar), "/")
        self.buildah("commit", "--quiet", "--timestamp", "0", "--rm", container, BASE)

    def build(self, tag: str, *, cached: bool = True) -> str:
        """Build our Dockerfile; returns the image's id, which is a hash of all of it."""
        words = ["build", "--isolation", "chroot", "--network", "host", "--pull=never"]
        words += ["--timestamp", "0", "--quiet", "--tag", tag]
        if not cached:
            words.append("--no-cache")
        if _AUTHORITIES.is_dir():
            words += ["--volume", f"{_AUTHORITIES}:{_AUTHORITIES}:ro"]
        return self.buildah(*words, str(self._source)).splitlines()[-1]

    def unpack(self, image: str) -> Path:
        """The root file system of an image."""
        return Path(self.buildah("mount", self.buildah("from", "--pull-never", image)))


class Container(NamedTuple):
    """How a program of an image is run."""

    root: Path
    uid: int = 0
    gid: int = 0
    capabilities: tuple[int, ...] = ()
    read_only: bool = False


class Ran(NamedTuple):
    """What became of a program."""

    status: int
    out: str
    err: str


def inside(
    container: Container, words: Sequence[str], environment: Mapping[str, str] | None = None
) -> Ran:
    """Run a program of the image in this network namespace, and in mounts of its own."""
    outputs = [os.memfd_create(name) for name in ("out", "err")]
    pid = os.fork()
    if pid == 0:
        try:
            for number, output in enumerate(outputs, 1):
                os.dup2(output, number)
            _enter(container)
            os.execvpe(words[0], list(words), {"PATH": _PATH, **(environment or {})})  # noqa: S606
        except BaseException as error:  # noqa: BLE001 - a child ends here
            os.write(2, repr(error).encode())
        finally:
            os._exit(127)
    _, status = os.waitpid(pid, 0)
    texts = []
    for output in outputs:
        os.lseek(output, 0, os.SEEK_SET)
        with os.fdopen(output, encoding="utf-8") as text:
            texts.append(text.read())
    return Ran(os.waitstatus_to_exitcode(status), *texts)


_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _enter(container: Container) -> None:
    """Become a process of the container."""
    root = str(container.root)
    kernelcalls.unshare(kernelcalls.NEW_MOUNTS)
    kernelcalls.make_mounts_private()
    kernelcalls.bind_mount(root, root)
    kernelcalls.mount("proc", f"{root}/proc")
    if container.read_only:
        kernelcalls.make_read_only(root)
    os.chroot(root)
    os.chdir("/")
    kernelcalls.become(container.uid, container.gid, container.capabilities)
