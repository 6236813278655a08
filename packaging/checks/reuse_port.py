"""Several processes that share a port."""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile

from .peers import daemon, echo, metric
from .tools import inside, need, need_root, release


def check_reuse_port():
    """Checks the statements of the page about --reuse-port: it spreads connections, only processes of one user share a
    port, and the backlog of a process that exits is reset unless the sysctl is set.
    """
    need_root()
    need("unshare", "ip", "setpriv")
    release()
    return inside(inside_reuse_port)


def inside_reuse_port():
    metrics = [("127.0.0.1", 9007), ("127.0.0.1", 9008)]
    options = ("--listen", "127.0.0.1:9999", "--reuse-port")
    with contextlib.ExitStack() as stack:
        for host, port in metrics:
            stack.enter_context(daemon(*options, "--metrics", f"{host}:{port}"))
        for _ in range(100):
            echo(("127.0.0.1", 9999), b"either\n")
        shares = [metric(address, "echod_connections_accepted_total") for address in metrics]
        assert sum(shares) == 100 and all(shares), shares
        # Copied, because another user may not be able to reach the build directory.
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            copy = shutil.copy(release(), folder)
            other = subprocess.run(
                ["setpriv", "--reuid=65532", "--clear-groups", copy, *options],
                text=True,
                capture_output=True,
                timeout=10,
            )
        assert other.returncode == 1 and "Address already in use" in other.stderr, other
        assert resets_of_a_queue(migrate=0) > 0
        if pathlib.Path("/proc/sys/net/ipv4/tcp_migrate_req").exists():
            assert resets_of_a_queue(migrate=1) == 0
    return f"{shares[0]:.0f} and {shares[1]:.0f} of 100 connections"


def resets_of_a_queue(migrate):
    """Returns how many of 20 connections are reset when one of two listeners on a port closes without accepting any."""
    with contextlib.suppress(FileNotFoundError):
        pathlib.Path("/proc/sys/net/ipv4/tcp_migrate_req").write_text(f"{migrate}\n")
    with contextlib.ExitStack() as stack:
        listeners = [socket.create_server(("127.0.0.1", 9990), reuse_port=True, backlog=64) for _ in range(2)]
        peers = [stack.enter_context(socket.create_connection(("127.0.0.1", 9990), 5)) for _ in range(20)]
        listeners[0].close()
        with listeners[1]:
            # The kernel sends the resets before close(2) returns.
            return sum(peer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0 for peer in peers)
