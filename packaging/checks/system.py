"""A disposable copy of this system with its own systemd."""

import contextlib
import pathlib
import shutil
import subprocess
import tempfile

from .tools import process, run, wait_for


@contextlib.contextmanager
def booted(package):
    """Boots systemd in a copy of this system. Yields a function that runs a command there."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        run("mount", "-t", "tmpfs", "tmpfs", folder)
        stack.callback(run, "umount", "--recursive", "--lazy", folder)
        root, upper, work = (pathlib.Path(folder, name) for name in ("root", "upper", "work"))
        for path in (upper, work, root / "usr"):
            path.mkdir(parents=True)
        run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir=/usr,upperdir={upper},workdir={work}", root / "usr")
        for path in (
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
        ):
            (root / path).mkdir(parents=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            (root / name).symlink_to(f"usr/{name}")
        # Only a little of /etc, because nothing else that is configured here may start there.
        for name in (
            "passwd",
            "group",
            "shadow",
            "nsswitch.conf",
            "ld.so.cache",
            "alternatives",
            "debian_version",
            "dpkg",
        ):
            source = pathlib.Path("/etc", name)
            if source.is_dir():
                shutil.copytree(source, root / "etc" / name, symlinks=True)
            elif source.exists():
                shutil.copy(source, root / "etc" / name)
        shutil.copytree("/var/lib/dpkg", root / "var/lib/dpkg", symlinks=True)
        # dpkg may be configured to leave out documentation, which is tested here.
        shutil.rmtree(root / "etc/dpkg/dpkg.cfg.d", ignore_errors=True)
        (root / "etc/machine-id").touch()
        shutil.copy(package, root / "echod.deb")
        # The 30 s of the unit are for busy machines; here they would only make the check slow.
        for unit in ("echod.service", "echod@.service"):
            hasty = root / "etc/systemd/system" / f"{unit}.d/watchdog.conf"
            hasty.parent.mkdir(parents=True)
            hasty.write_text("[Service]\nWatchdogSec=2s\n")

        nspawn = (
            "systemd-nspawn",
            f"--directory={root}",
            "--register=no",
            "--keep-unit",
            "--machine=echod-check",
            "--boot",
        )
        log = open(pathlib.Path(folder, "log"), "w+")
        with process(*nspawn, "systemd.unit=basic.target", stdin=subprocess.DEVNULL, stdout=log, stderr=log) as machine:

            def on_it(*command):
                return run(*on_it.enter, *command, timeout=90)

            def up():
                """Looks for PID 1 again on every call: nspawn's first child may be a temporary one."""
                assert machine.poll() is None, pathlib.Path(folder, "log").read_text()
                leader = pathlib.Path(f"/proc/{machine.pid}/task/{machine.pid}/children").read_text().split()[:1]
                path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
                on_it.enter = ["nsenter", "--target", *leader, "--mount", "--uts", "--ipc", "--pid"]
                on_it.enter += ["env", "-i", path, "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"]
                return leader and on_it("systemctl", "is-active", "basic.target") == "active\n"

            wait_for("systemd to boot", up, 60)
            try:
                yield on_it
            except AssertionError:
                journal = ["journalctl", "--no-pager", "--grep=echod", "--lines=60"]
                print(subprocess.run(on_it.enter + journal, text=True, capture_output=True).stdout)
                raise
