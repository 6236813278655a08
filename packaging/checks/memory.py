"""The memory limits of the Kubernetes manifest and of the systemd units, against peers that do not read."""

import contextlib
import os
import pathlib
import re
import resource
import socket
import statistics
import threading
import time

from .peers import daemon, metric
from .tools import HERE, Skip, inside, need, need_root, release, wait_for

MIB = 1 << 20
ADDRESS = ("127.0.0.1", 9999)
METRICS = ("127.0.0.1", 9007)
CGROUPS = pathlib.Path("/sys/fs/cgroup")


class Cgroup:
    """A control group with a memory limit. Version 2 counts the kernel's socket buffers toward it. Version 1 counts
    them separately; there the sum is compared with the limit.
    """

    def __init__(self, limit):
        self.limit = limit
        self.is_v2 = self.v2_exists()
        self.path = (CGROUPS if self.is_v2 else CGROUPS / "memory") / f"echod-check-{os.getpid()}"

    @staticmethod
    def v2_exists():
        controllers = CGROUPS / "cgroup.subtree_control"
        return controllers.exists() and "memory" in controllers.read_text().split()

    @staticmethod
    def exists():
        return Cgroup.v2_exists() or (CGROUPS / "memory/memory.kmem.tcp.limit_in_bytes").exists()

    def __enter__(self):
        self.path.mkdir()
        if self.is_v2:
            self.write("memory.max", self.limit)
        else:
            self.write("memory.limit_in_bytes", self.limit)
            # Socket memory is counted only once it has a limit.
            self.write("memory.kmem.tcp.limit_in_bytes", 64 << 30)
        return self

    def __exit__(self, *_):
        # The kernel frees the group's last sockets a moment after its last process has ended.
        wait_for("an empty control group", lambda: self.path.rmdir() is None)

    def write(self, file, value):
        (self.path / file).write_text(f"{value}\n")

    def read(self, file):
        return int((self.path / file).read_text())

    def join(self):
        """Runs in the child process before it executes the daemon."""
        (self.path / "cgroup.procs").write_text("0\n")

    def peak(self):
        if self.is_v2:
            assert "oom_kill 0" in (self.path / "memory.events").read_text(), "out of memory"
            return self.read("memory.peak")
        return self.read("memory.max_usage_in_bytes") + self.read("memory.kmem.tcp.max_usage_in_bytes")


def manifest():
    """Returns the options and the memory limit of kubernetes.yaml."""
    text = (HERE / "kubernetes.yaml").read_text()
    limit = int(re.search(r"limits: \{memory: (\d+)Mi\}", text)[1]) * MIB
    return re.findall(r"^ +- (--[a-z-]+=\S+)$", text, re.M), limit


def units():
    """Returns, for each unit, the options and the limit above which the kernel slows down the service."""
    defaults = (HERE / "default/echod").read_text()
    for unit, variable in (("echod.service", "ECHOD_OPTIONS"), ("echod@.service", "ECHOD_INSTANCE_OPTIONS")):
        text = (HERE / "systemd" / unit).read_text()
        options = re.search(rf'^{variable}="(.*)"$', defaults, re.M)[1]
        assert f'Environment="{variable}={options}"' in text, f"{unit} and default/echod have different options"
        yield options.split(), int(re.search(r"^MemoryHigh=(\d+)M$", text, re.M)[1]) * MIB


def value(options, name):
    return next(int(option.split("=")[1]) for option in options if option.startswith(f"--{name}="))


def bound(options):
    """The sum in the comment of kubernetes.yaml: the most memory that these options allow."""
    connections = value(options, "max-connections")
    per_connection = 5 * value(options, "socket-buffer") + 512
    return connections * per_connection + value(options, "max-buffered") + 8 * MIB


def check_memory():
    """As many peers as the manifest allows, none of which reads, fit into its memory limit."""
    need_root()
    need("unshare", "ip")
    if not Cgroup.exists():
        raise Skip("no memory controller in /sys/fs/cgroup")
    for options, limit in (manifest(), *units()):
        assert bound(options) <= limit, (
            f"{options} may take {bound(options) / MIB:.0f} MiB, the limit is {limit / MIB:.0f}"
        )
    release()
    # The sockets of all namespaces together; only the first one shows it.
    pressure = int(pathlib.Path("/proc/sys/net/ipv4/tcp_mem").read_text().split()[1]) * resource.getpagesize()
    return inside(inside_memory, pressure)


def inside_memory(pressure):
    options, limit = manifest()
    count = value(options, "max-connections")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    assert hard > count + 100, f"only {hard} file descriptors"
    peak = stalled_peers(options, limit, count)
    assert peak <= limit, f"{count} stalled peers take {peak / MIB:.0f} MiB, the limit is {limit / MIB:.0f}"
    # Without the option that bounds the kernel's part, a fifth of the peers exceeds the limit. On a machine with little
    # memory the kernel stops them earlier (tcp_mem); there they exceed what the sum allows a fifth of the peers.
    unbounded = [option for option in options if not option.startswith("--socket-buffer")]
    excess = stalled_peers(unbounded, 8 << 30, count // 5)
    least = limit if int(pressure) > 2 * limit else bound([f"--max-connections={count // 5}", *options])
    assert excess > least, f"{excess / MIB:.0f} MiB, tcp_mem {int(pressure) / MIB:.0f} MiB"
    # What the option costs. Interleaved, because other programs may be using the processor.
    rates = [[throughput(options), throughput(unbounded)] for _ in range(5)]
    small, autotuned = (statistics.median(rate) for rate in zip(*rates))
    return (
        f"{count} stalled peers take {peak / MIB:.0f} MiB of {limit / MIB:.0f}, {bound(options) / MIB:.0f} calculated; "
        f"without --socket-buffer {count // 5} take {excess / MIB:.0f}; one bulk connection {small / 1e6:.0f} MB/s, "
        f"without --socket-buffer {autotuned / 1e6:.0f}"
    )


def stalled_peers(options, limit, count):
    """Returns the most memory that the daemon and its sockets took while `count` peers sent all they could and read
    nothing. One more peer is served as soon as one of them leaves.
    """
    with Cgroup(limit) as group, contextlib.ExitStack() as stack:
        server = stack.enter_context(daemon(*options, "-q", preexec_fn=group.join))
        peers = [stack.enter_context(stalled_peer(n)) for n in range(count)]
        blocks = (bytes(65536), bytes(100))
        start = last = time.monotonic()
        # Until no peer could send anything for a second.
        while time.monotonic() < min(last + 1, start + 60):
            assert server.poll() is None, f"the daemon ended with {server.returncode}"
            for n, peer in enumerate(peers):
                with contextlib.suppress(BlockingIOError):
                    while peer.send(blocks[n % 2]):
                        last = time.monotonic()
        # Not all: the kernel may still be delivering what others have sent.
        stalled = metric(METRICS, "echod_stalled_connections")
        assert stalled > 0.8 * count, f"{stalled:.0f} of {count} connections are stalled"
        # At the connection limit a new connection waits in the backlog until another one ends.
        waiting = stack.enter_context(socket.create_connection(ADDRESS, 20))
        waiting.sendall(b"waiting\n")
        peers[0].close()
        assert waiting.recv(8, socket.MSG_WAITALL) == b"waiting\n"
        return group.peak()


def throughput(options, seconds=0.5):
    """Returns how many bytes per second one connection echoes."""
    with daemon(*options, "-q"), socket.create_connection(ADDRESS, 20) as peer:
        end = time.monotonic() + seconds

        def send():
            while time.monotonic() < end:
                peer.sendall(bytes(65536))
            peer.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        echoed = 0
        while size := len(peer.recv(65536)):
            echoed += size
        sender.join()
    return echoed / seconds


def stalled_peer(n):
    """Connects. Little of the echo fits into every other pair of peers, so that the daemon has to hold more of it."""
    peer = socket.socket()
    if n // 2 % 2:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.settimeout(20)
    peer.connect(ADDRESS)
    peer.setblocking(False)
    return peer
