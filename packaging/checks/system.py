"""A disposable copy of this system with its own systemd."""

import contextlib
import fcntl
import pathlib
import shutil
import subprocess
import tempfile

from .tools import process, run, wait_for

# What systemd and dpkg need of /etc. Nothing else that is configured here may start there.
ETC = ("passwd", "group", "shadow", "nsswitch.conf", "ld.so.cache", "alternatives", "debian_version", "dpkg")

EMPTY = (
    "dev",
    "etc/apt/apt.conf.d",
    "etc/systemd",
    "proc",
    "run",
    "sys",
    "tmp",
    "root",
    "var/lib/apt/lists/partial",
    "var/cache/apt/archives/partial",
    "var/log/apt",
    "var/log/journal",
)

# The times of the units are for busy machines; here they would only make the checks slow.
HASTY = """\
[Service]
WatchdogSec=2s
RestartSec=200ms
"""


class System:
    """The booted copy. Commands run there as root; its network is that of the check."""

    def __init__(self, root):
        self.root = root
        self.enter = []

    def run(self, *command):
        return run(*self.enter, *command, timeout=90)

    def succeeds(self, *command):
        return subprocess.run([*self.enter, *command], capture_output=True, timeout=90).returncode == 0

    def show(self, unit, name):
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def install(self, package, *options):
        shutil.copy(package, self.root / "echod.deb")
        self.run("apt-get", "install", "--yes", *options, "/echod.deb")

    def executable(self, unit):
        """The binary that the service runs; the kernel marks one that was replaced as deleted."""
        return self.run("readlink", f"/proc/{self.show(unit, 'MainPID')}/exe").strip()


@contextlib.contextmanager
def no_installation():
    """Waits until no program installs packages on this machine, and lets none start: in a copy of dpkg's state that was
    made meanwhile, every installation would fail with "dpkg was interrupted".
    """
    with open("/var/lib/dpkg/lock-frontend", "a") as lock:
        wait_for("the lock of dpkg", lambda: fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB) is None, 300)
        yield


@contextlib.contextmanager
def booted():
    """Boots systemd in a copy of this system."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        run("mount", "-t", "tmpfs", "tmpfs", folder)
        stack.callback(run, "umount", "--recursive", "--lazy", folder)
        root, upper, work = (pathlib.Path(folder, name) for name in ("root", "upper", "work"))
        for path in (upper, work, root / "usr", *(root / name for name in EMPTY)):
            path.mkdir(parents=True)
        run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir=/usr,upperdir={upper},workdir={work}", root / "usr")
        for name in ("bin", "sbin", "lib", "lib64"):
            (root / name).symlink_to(f"usr/{name}")
        with no_installation():
            for name in ETC:
                source = pathlib.Path("/etc", name)
                if source.is_dir():
                    shutil.copytree(source, root / "etc" / name, symlinks=True)
                elif source.exists():
                    shutil.copy(source, root / "etc" / name)
            shutil.copytree("/var/lib/dpkg", root / "var/lib/dpkg", symlinks=True)
        # dpkg may be configured to leave out documentation, which is tested here.
        shutil.rmtree(root / "etc/dpkg/dpkg.cfg.d", ignore_errors=True)
        # Container images use this to forbid packages to restart services, which is tested here.
        (root / "usr/sbin/policy-rc.d").unlink(missing_ok=True)
        (root / "etc/machine-id").touch()
        for unit in ("echod.service", "echod@.service"):
            hasty = root / "etc/systemd/system" / f"{unit}.d/hasty.conf"
            hasty.parent.mkdir(parents=True)
            hasty.write_text(HASTY)

        nspawn = (
            "systemd-nspawn",
            f"--directory={root}",
            "--register=no",
            "--keep-unit",
            "--machine=echod-check",
            "--boot",
        )
        log = stack.enter_context(open(pathlib.Path(folder, "log"), "w+"))
        with process(*nspawn, "systemd.unit=basic.target", stdin=subprocess.DEVNULL, stdout=log, stderr=log) as machine:
            system = System(root)

            def up():
                """Looks for PID 1 again on every call: nspawn's first child may be a temporary one."""
                assert machine.poll() is None, pathlib.Path(folder, "log").read_text()
                leader = pathlib.Path(f"/proc/{machine.pid}/task/{machine.pid}/children").read_text().split()[:1]
                path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
                system.enter = ["nsenter", "--target", *leader, "--mount", "--uts", "--ipc", "--pid"]
                system.enter += ["env", "-i", path, "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"]
                return leader and system.run("systemctl", "is-active", "basic.target") == "active\n"

            wait_for("systemd to boot", up, 60)
            try:
                yield system
            except Exception:
                journal = ["journalctl", "--no-pager", "--grep=echod", "--lines=60"]
                print(subprocess.run(system.enter + journal, text=True, capture_output=True).stdout)
                raise
