"""HAProxy in front of two echods."""

import concurrent.futures
import contextlib
import pathlib
import random
import signal
import socket
import tempfile
import threading

from .network import machine
from .peers import daemon, echo, is_ended, metric
from .tools import HERE, inside, need, need_root, process, release, run, wait_for


def check_haproxy():
    """Runs HAProxy with the unmodified file, in a namespace: half-close, and a server that stops and starts again."""
    need_root()
    need("haproxy", "unshare", "ip")
    run("haproxy", "-c", "-f", HERE / "haproxy.cfg")
    release()
    return inside(inside_haproxy)


def inside_haproxy():
    backends = ["192.0.2.11", "192.0.2.12"]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        statistics = f"{folder}/statistics"
        extra = pathlib.Path(folder, "statistics.cfg")
        extra.write_text(f"global\n    stats socket {statistics}\n")

        def states():
            with socket.socket(socket.AF_UNIX) as control:
                control.connect(statistics)
                control.sendall(b"show stat\n")
                rows = control.makefile().read().splitlines()
            fields = [row.split(",") for row in rows]
            return {row[1]: row[17] for row in fields if row[0] == "echod"}

        machines = [
            stack.enter_context(machine(f"echod{n}", f"192.0.2.{n}", address)) for n, address in enumerate(backends, 1)
        ]

        def start(n):
            metrics = f"--metrics={backends[n]}:9007"
            return stack.enter_context(daemon("--listen=7", metrics, prefix=machines[n]))

        first, second = start(0), start(1)
        log = stack.enter_context(open(f"{folder}/log", "w"))
        stack.enter_context(process("haproxy", "-db", "-f", HERE / "haproxy.cfg", "-f", extra, stdout=log, stderr=log))
        stack.push(lambda kind, *_: kind and print(pathlib.Path(f"{folder}/log").read_text()))
        wait_for("both servers up", lambda: [states()[f"echod{n}"] for n in (1, 2)] == ["UP", "UP"])

        # A FIN directly after the bytes, before HAProxy has connected, and a slow reader.
        generator = random.Random(64)
        for address in (("127.0.0.1", 7), ("::1", 7)):
            for size in (1, 1000, 65536, 8 << 20):
                echo(address, generator.randbytes(size))
        for _ in range(300):
            echo(("127.0.0.1", 7), b"hello\n")
        echo(("127.0.0.1", 7), generator.randbytes(6 << 20), pause_before_reading=2.0)
        shares = [metric((address, 9007), "echod_connections_accepted_total") for address in backends]
        assert all(shares), shares

        # Servers that answer a FIN late: a `timeout server-fin` of a second would cut the echo.
        for server in (first, second):
            server.send_signal(signal.SIGSTOP)
        threading.Timer(1.5, lambda: [server.send_signal(signal.SIGCONT) for server in (first, second)]).start()
        echo(("127.0.0.1", 7), generator.randbytes(65536))

        # One server drains with open connections while new ones arrive. None is refused, none is reset.
        held = [socket.create_connection(("127.0.0.1", 7), 10) for _ in range(4)]
        for peer in held:
            peer.sendall(b"open\n")
            assert peer.recv(5, socket.MSG_WAITALL) == b"open\n"
        first.send_signal(signal.SIGTERM)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            meanwhile = pool.map(lambda _: echo(("127.0.0.1", 7), b"meanwhile\n", during_a_drain=True), range(100))
            assert sum(meanwhile) > 90
        ended = [peer for peer in held if is_ended(peer)]
        assert ended and len(ended) < len(held), "the drain ends the connections of one server, each with a FIN"
        for peer in held:
            peer.close()
        assert first.wait(15) == 0
        wait_for("the stopped server to be down", lambda: states()["echod1"] == "DOWN")
        echo(("127.0.0.1", 7), generator.randbytes(1 << 20))
        start(0)
        wait_for("the server to be up again", lambda: states()["echod1"] == "UP")
        for _ in range(20):
            echo(("127.0.0.1", 7), b"both again\n")
        assert metric((backends[0], 9007), "echod_connections_accepted_total") > 0
    return f"{shares[0]:.0f} and {shares[1]:.0f} connections to two servers"
