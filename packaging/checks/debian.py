"""The Debian package, in a disposable copy of this system with its own systemd."""

import contextlib
import os
import pathlib
import random
import re
import socket
import tempfile
import time

from .load import Load
from .peers import echo, get, metric
from .system import booted
from .tools import ROOT, debian_package, inside, need, need_root, run, wait_for

PORT_7 = ("127.0.0.1", 7)
METRICS = ("127.0.0.1", 9007)


def in_a_system(function, *packages):
    need_root()
    need("dpkg", "apt-get", "systemd-nspawn", "unshare", "nsenter", "ip")
    return inside(function, *packages)


def two_cores():
    return sorted(os.sched_getaffinity(0))[:2]


def check_symbols():
    """The binary is stripped and holds no path of this machine; its symbols are in a package of their own."""
    with tempfile.TemporaryDirectory() as folder:
        for package in debian_package():
            run("dpkg", "--extract", package, folder)
        binary = pathlib.Path(folder, "usr/bin/echod").read_bytes()
        for path in (ROOT, pathlib.Path(os.environ.get("CARGO_HOME", pathlib.Path.home() / ".cargo"))):
            assert bytes(path) not in binary, f"{path} is in the binary"
        assert b".symtab" not in binary
        # The note section of elf(5): the lengths of name and value, the type NT_GNU_BUILD_ID, name, value.
        identifier = re.search(rb"\x04\x00{3}\x14\x00{3}\x03\x00{3}GNU\x00(.{20})", binary, re.S)[1].hex()
        symbols = pathlib.Path(folder, f"usr/lib/debug/.build-id/{identifier[:2]}/{identifier[2:]}.debug").read_bytes()
        assert b".symtab" in symbols and b".debug_line" in symbols
    return f"{len(binary) / 1e6:.1f} MB, symbols {len(symbols) / 1e6:.1f} MB"


def check_debian():
    """Installs, uses and purges the package."""
    return in_a_system(inside_debian, debian_package()[0])


def inside_debian(package):
    with booted() as system:
        files = install(system, package)
        serve(system)
        share = serve_on_two_cores(system)
        purge(system, files)
    return " and ".join(map(str, share)) + " of 100 connections to one process per core"


def install(system, package):
    system.install(package)
    files = [line for line in system.run("dpkg", "-L", "echod").splitlines() if "echod" in line]
    assert "/usr/share/man/man1/echod.1.gz" in files, files
    assert system.run("dpkg-query", "--showformat=${Conffiles}", "--show", "echod").split()[0] == "/etc/default/echod"
    assert system.run("echod", "--version").startswith("echod ")
    for unit in ("echod.socket", "echod.service"):
        assert system.show(unit, "ActiveState") == "inactive", "installing it started it"
        assert system.show(unit, "UnitFileState") == "disabled", "installing it enabled it"
    return files


def serve(system):
    # The socket unit owns port 7, and the first connection starts the daemon.
    system.run("systemctl", "start", "echod.socket")
    assert system.show("echod.service", "ActiveState") == "inactive"
    echo(PORT_7, b"the first peer\n")
    echo(("::1", 7), random.Random(7).randbytes(4 << 20))
    wait_for("READY=1", lambda: system.show("echod.service", "ActiveState") == "active")
    assert "64 bytes" in system.run("echod", "--check", "7")
    wait_for("the status", lambda: "connection" in system.show("echod.service", "StatusText"))
    # --socket-buffer applies to the passed socket; the kernel doubles it (socket(7)).
    buffers = system.run("ss", "--no-header", "--listening", "--tcp", "--memory", "sport = :7")
    assert "rb32768," in buffers and "tb32768," in buffers, buffers
    assert system.show("echod.service", "MemoryMax") == str(1 << 30)
    assert get(METRICS, "/healthz")[0] == 200
    assert metric(METRICS, "echod_connections_accepted_total") >= 2
    for name in ("resident_memory_bytes", "open_fds", "start_time_seconds", "cpu_seconds_total"):
        assert metric(METRICS, f"process_{name}") > 0 or name == "cpu_seconds_total"
    pid = system.show("echod.service", "MainPID")
    status = system.run("cat", f"/proc/{pid}/status")
    assert re.search(r"^CapBnd:\t0+$", status, re.M) and re.search(r"^Seccomp:\t2$", status, re.M), status
    assert not re.search(r"^Uid:\t0\t", status, re.M), status

    # The watchdog leaves a daemon alone that notifies it, and restarts one that does not.
    beat = system.show("echod.service", "WatchdogTimestampMonotonic")
    wait_for("WATCHDOG=1", lambda: system.show("echod.service", "WatchdogTimestampMonotonic") != beat, 40)
    system.run("kill", "-STOP", pid)
    wait_for("the watchdog", lambda: system.show("echod.service", "MainPID") not in (pid, "0"), 60)
    wait_for("the daemon restarted by the watchdog", lambda: echo(PORT_7, b"again\n"))

    # The journal has levels, and the text has no timestamps of its own.
    journal = system.run("journalctl", "--output=cat", "--priority=info..info", "--unit=echod.service")
    assert "at most" in journal, journal
    assert not re.search(r"^(<\d>|\S*\d\d:\d\d:\d\d)", journal, re.M), journal

    # The options are in a file of their own.
    options = system.root / "etc/default/echod"
    correct = options.read_text()
    options.write_text(correct.replace("--max-connections=10000", "--max-connections=77") + "RUST_LOG=echod=debug\n")
    system.run("systemctl", "restart", "echod.service")
    echo(PORT_7, b"in the log\n")
    debug = ("journalctl", "--output=cat", "--priority=debug..debug", "--unit=echod.service")
    wait_for("the connection in the log", lambda: " closed: " in system.run(*debug))
    assert "at most 77 connections" in system.run("journalctl", "--output=cat", "--unit=echod.service")

    # Without the metrics echod needs no network of its own: it serves the passed socket.
    drop_in = system.root / "etc/systemd/system/echod.service.d/network.conf"
    drop_in.write_text("[Service]\nPrivateNetwork=yes\n")
    options.write_text(correct.replace("--metrics=127.0.0.1:9007", ""))
    system.run("systemctl", "daemon-reload")
    system.run("systemctl", "restart", "echod.service")
    echo(PORT_7, b"without a network\n")
    drop_in.unlink()
    options.write_text(correct)
    system.run("systemctl", "daemon-reload")


def serve_on_two_cores(system):
    """Returns how many of 100 connections each process served."""
    system.run("systemctl", "enable", "--now", "echod")
    assert system.show("echod.socket", "UnitFileState") == "enabled"
    system.run("systemctl", "disable", "--now", "echod.socket", "echod.service")
    share = []
    for core in two_cores():
        system.run("systemctl", "enable", "--now", f"echod@{core}.service")
        assert system.show(f"echod@{core}.socket", "UnitFileState") == "enabled"
    for _ in range(100):
        echo(PORT_7, b"some core\n")
    for core in two_cores():
        pid = system.show(f"echod@{core}.service", "MainPID")
        assert re.search(rf"^Cpus_allowed_list:\t{core}$", system.run("cat", f"/proc/{pid}/status"), re.M)
        share.append(int(metric((f"127.0.1.{core}", 9007), "echod_connections_accepted_total")))
    assert sum(share) == 100 and (len(share) < 2 or all(share)), share
    return share


def purge(system, files):
    # A purge stops the running instances and removes the files and the links.
    system.run("apt-get", "purge", "--yes", "echod")
    assert not system.succeeds("dpkg", "-s", "echod")
    left = [file for file in files if system.succeeds("test", "-e", file)]
    assert not left, left
    links = system.run("find", "/etc/systemd", "/var/lib/systemd", "-name", "*echod*", "-not", "-name", "*.d")
    assert links == "", links
    units = system.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "--state=active,failed", "echod*")
    assert units == "", units
    assert system.run("ss", "--no-header", "--listening", "--tcp", "sport = :7") == ""


def check_upgrade():
    """Restarts and upgrades the package under load: no connection is refused or reset, and no process keeps running
    the old binary.
    """
    return in_a_system(inside_upgrade, debian_package()[0], debian_package(revision=2)[0])


def inside_upgrade(package, successor):
    with booted() as system:
        system.install(package)
        system.run("systemctl", "start", "echod")
        with Load(PORT_7) as load:
            for _ in range(3):
                system.run("systemctl", "restart", "echod.service")
        restarts = load.assert_lossless()
        assert load.ends["drained"], "the restarts closed no connection"
        assert system.show("echod.service", "Result") == "success"

        upgrades = []
        instances = [f"echod@{core}.service" for core in two_cores()]
        for units, upgrade, options in ((["echod.service"], successor, ()), (instances, successor, ("--reinstall",))):
            system.run("systemctl", "start", *units)
            before = [system.show(unit, "MainPID") for unit in units]
            with Load(PORT_7) as load:
                system.install(upgrade, *options)
            upgrades.append(load.assert_lossless())
            assert load.ends["drained"], "the upgrade closed no connection"
            for unit, pid in zip(units, before):
                assert system.show(unit, "MainPID") != pid, f"{unit} was not restarted"
                assert system.executable(unit) == "/usr/bin/echod", system.executable(unit)
        # An upgrade starts nothing that the administrator has stopped.
        system.run("systemctl", "stop", "echod@*.socket", "echod@*.service")
        system.install(successor, "--reinstall")
        assert system.run("systemctl", "list-units", "--plain", "--no-legend", "--state=active", "echod*") == ""
    return f"restarts: {restarts}; upgrade: {upgrades[0]}; with instances: {upgrades[1]}"


def check_start_failure():
    """A failed start heals: meanwhile the port stays open, and a waiting peer is served in the end."""
    return in_a_system(inside_start_failure, debian_package()[0])


def inside_start_failure(package):
    waits = []
    with booted() as system:
        system.install(package)
        options = system.root / "etc/default/echod"
        correct = options.read_text()

        @contextlib.contextmanager
        def port_conflict():
            with socket.create_server(METRICS):
                yield

        @contextlib.contextmanager
        def wrong_option():
            options.write_text(correct.replace("--max-connections=10000", "--max-connections=many"))
            yield
            options.write_text(correct)

        system.run("systemctl", "start", "echod.socket")
        for cause in (port_conflict, wrong_option):
            with contextlib.ExitStack() as stack:
                with cause():
                    peer = stack.enter_context(socket.create_connection(PORT_7, 5))
                    peer.sendall(b"waiting\n")
                    # More starts than any default limit allows: 5 of a service, 20 activations of a socket.
                    failures = lambda: int(system.show("echod.service", "NRestarts")) >= 22
                    wait_for(f"22 failed starts: {cause.__name__}", failures, 60)
                    assert system.show("echod.socket", "ActiveState") == "active"
                healed = time.monotonic()
                peer.settimeout(10)
                assert peer.recv(8, socket.MSG_WAITALL) == b"waiting\n"
                waits.append(time.monotonic() - healed)
            system.run("systemctl", "stop", "echod.service")
    return f"served {waits[0]:.1f} s after a port conflict ended, {waits[1]:.1f} s after an option was corrected"


def check_switching():
    """Starting `echod@N` replaces `echod`, and the other way round, also under load."""
    return in_a_system(inside_switching, debian_package()[0])


def inside_switching(package):
    with booted() as system:
        system.install(package)
        system.run("systemctl", "start", "echod")
        instances = [f"echod@{core}" for core in two_cores()]
        with Load(PORT_7) as load:
            for units in (instances, ["echod"]) * 3:
                system.run("systemctl", "start", *units)
                for unit in units:
                    for kind in ("socket", "service"):
                        assert system.show(f"{unit}.{kind}", "ActiveState") == "active", f"{unit}.{kind}"
                listening = system.run("ss", "--no-header", "--listening", "--tcp", "sport = :7").splitlines()
                assert len(listening) == len(units), listening
                echo(PORT_7, b"after the switch\n")
    assert not [end for end in load.ends if end.startswith("failed")], load.ends
    return f"{load.ends['complete']} echoes beside 6 switches, {load.ends['refused']} connections refused in between"
