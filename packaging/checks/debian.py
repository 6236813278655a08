"""The Debian package, installed in a disposable copy of this system."""

import concurrent.futures
import os
import random
import re
import subprocess
import threading

from .peers import echo, get, metric
from .system import booted
from .tools import debian_package, inside, need, need_root, wait_for


def check_debian():
    """Installs, uses, upgrades and purges the package in a copy of this system with its own systemd."""
    need_root()
    need("dpkg", "apt-get", "systemd-nspawn", "unshare", "nsenter", "ip")
    return inside(inside_debian, debian_package())


def inside_debian(package):
    with booted(package) as on_it:
        metrics, port_7 = ("127.0.0.1", 9007), ("127.0.0.1", 7)
        show = lambda unit, name: on_it("systemctl", "show", "--value", f"--property={name}", unit).strip()
        installed = lambda: subprocess.run(on_it.enter + ["dpkg", "-s", "echod"], capture_output=True).returncode == 0

        on_it("apt-get", "install", "--yes", "/echod.deb")
        files = [line for line in on_it("dpkg", "-L", "echod").splitlines() if "echod" in line]
        assert "/usr/share/man/man1/echod.1.gz" in files, files
        assert on_it("echod", "--version").startswith("echod ")
        for unit in ("echod.socket", "echod.service"):
            assert show(unit, "ActiveState") == "inactive", "installing it started it"
            assert show(unit, "UnitFileState") == "disabled", "installing it enabled it"

        # The socket unit owns port 7, and the first connection starts the daemon.
        on_it("systemctl", "start", "echod.socket")
        assert show("echod.service", "ActiveState") == "inactive"
        echo(port_7, b"the first peer\n")
        echo(("::1", 7), random.Random(7).randbytes(4 << 20))
        wait_for("READY=1", lambda: show("echod.service", "ActiveState") == "active")
        wait_for("the status", lambda: "connection" in show("echod.service", "StatusText"))
        assert get(metrics, "/healthz")[0] == 200
        assert metric(metrics, "echod_connections_accepted_total") >= 2
        for name in ("resident_memory_bytes", "open_fds", "start_time_seconds", "cpu_seconds_total"):
            assert metric(metrics, f"process_{name}") > 0 or name == "cpu_seconds_total"
        pid = show("echod.service", "MainPID")
        status = on_it("cat", f"/proc/{pid}/status")
        assert re.search(r"^CapBnd:\t0+$", status, re.M) and re.search(r"^Seccomp:\t2$", status, re.M), status
        assert not re.search(r"^Uid:\t0\t", status, re.M), status

        # The watchdog leaves a daemon alone that notifies it, and restarts one that does not.
        beat = show("echod.service", "WatchdogTimestampMonotonic")
        wait_for("WATCHDOG=1", lambda: show("echod.service", "WatchdogTimestampMonotonic") != beat, 40)
        on_it("kill", "-STOP", pid)
        wait_for("the watchdog", lambda: show("echod.service", "MainPID") not in (pid, "0"), 60)
        wait_for("the daemon restarted by the watchdog", lambda: echo(port_7, b"again\n"))

        # Restarts under load: new connections wait in systemd's backlog. None is refused, none is reset.
        stop = threading.Event()

        def peers():
            count = 0
            while not stop.is_set():
                count += echo(port_7, b"while it restarts\n", during_a_drain=True)
            return count

        with concurrent.futures.ThreadPoolExecutor() as pool:
            served = pool.submit(peers)
            for _ in range(3):
                on_it("systemctl", "restart", "echod.service")
            stop.set()
            assert served.result() > 0
        assert show("echod.service", "Result") == "success"

        # The journal has levels, and the text has no timestamps of its own.
        journal = on_it("journalctl", "--output=cat", "--priority=info..info", "--unit=echod.service")
        assert "at most" in journal, journal
        assert not re.search(r"^(<\d>|\S*\d\d:\d\d:\d\d)", journal, re.M), journal

        # After an upgrade it is running. One process per core shares the port.
        on_it("apt-get", "install", "--yes", "--reinstall", "/echod.deb")
        wait_for("the daemon after an upgrade", lambda: echo(port_7, b"upgraded\n"))
        on_it("systemctl", "enable", "--now", "echod")
        assert show("echod.socket", "UnitFileState") == "enabled"
        on_it("systemctl", "disable", "--now", "echod.socket", "echod.service")
        cores = sorted(os.sched_getaffinity(0))[:2]
        for core in cores:
            on_it("systemctl", "enable", "--now", f"echod@{core}.service")
            assert show(f"echod@{core}.socket", "UnitFileState") == "enabled"
        for _ in range(100):
            echo(port_7, b"some core\n")
        share = []
        for core in cores:
            pid = show(f"echod@{core}.service", "MainPID")
            assert re.search(rf"^Cpus_allowed_list:\t{core}$", on_it("cat", f"/proc/{pid}/status"), re.M)
            share.append(int(metric((f"127.0.1.{core}", 9007), "echod_connections_accepted_total")))
        assert sum(share) == 100 and (len(cores) < 2 or all(share)), share

        # A purge stops the running instances and removes the files and the links.
        on_it("apt-get", "purge", "--yes", "echod")
        assert not installed()
        left = [file for file in files if subprocess.run(on_it.enter + ["test", "-e", file]).returncode == 0]
        assert not left, left
        links = on_it("find", "/etc/systemd", "/var/lib/systemd", "-name", "*echod*", "-not", "-name", "*.d")
        assert links == "", links
        units = on_it("systemctl", "list-units", "--all", "--plain", "--no-legend", "--state=active,failed", "echod*")
        assert units == "", units
        assert on_it("ss", "--no-header", "--listening", "--tcp", "sport = :7") == ""
    return f"{share[0]} and {share[-1]} of 100 connections to two cores" if len(share) > 1 else ""
