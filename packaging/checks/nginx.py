"""nginx in front of two echods."""

import contextlib
import pathlib
import random
import signal
import tempfile

from .network import machine
from .peers import daemon, echo, metric
from .tools import HERE, inside, need, need_root, process, release, unpacked, wait_for

ADDRESS = ("127.0.0.1", 7)


def check_nginx():
    """Runs nginx with the unmodified file, in a namespace: half-close, slow readers, and a server that stops."""
    need_root()
    need("unshare", "ip")
    release()
    program = unpacked("nginx", "usr/sbin/nginx")
    module = unpacked("libnginx-mod-stream", "usr/lib/nginx/modules/ngx_stream_module.so")
    return inside(inside_nginx, program, module)


@contextlib.contextmanager
def nginx(program, module, text):
    """A running nginx with this text beside the settings that a system's nginx.conf has."""
    with tempfile.TemporaryDirectory() as folder:
        configuration = pathlib.Path(folder, "nginx.conf")
        start = (
            f"load_module {module};\nuser root;\ndaemon off;\npid {folder}/pid;\nerror_log {folder}/log;\nevents {{}}\n"
        )
        configuration.write_text(start + text)
        with process(program, "-c", configuration, "-p", folder):
            wait_for("nginx to echo", lambda: echo(ADDRESS, b""))
            try:
                yield
            except AssertionError:
                print(pathlib.Path(folder, "log").read_text())
                raise


def inside_nginx(program, module):
    backends = ["192.0.2.11", "192.0.2.12"]
    text = (HERE / "nginx.conf").read_text()
    generator = random.Random(65)
    with contextlib.ExitStack() as stack:
        servers = []
        for n, address in enumerate(backends, 1):
            enter = stack.enter_context(machine(f"echod{n}", f"192.0.2.{n}", address))
            servers.append(stack.enter_context(daemon("--listen=7", f"--metrics={address}:9007", prefix=enter)))

        with nginx(program, module, text):
            for address in (ADDRESS, ("::1", 7)):
                for size in (1, 1000, 65536, 8 << 20):
                    echo(address, generator.randbytes(size))
            echo(ADDRESS, generator.randbytes(6 << 20), pause_before_reading=2.0)
            for _ in range(100):
                echo(ADDRESS, b"hello\n")
            shares = [metric((address, 9007), "echod_connections_accepted_total") for address in backends]
            assert all(shares), shares
            servers[0].send_signal(signal.SIGTERM)
            assert servers[0].wait(15) == 0
            for _ in range(20):
                echo(ADDRESS, b"the other server\n")

        # The sentence about proxy_half_close.
        with nginx(program, module, text.replace("proxy_half_close on;", "")):
            try:
                echo(ADDRESS, generator.randbytes(6 << 20), pause_before_reading=0.5)
            except (AssertionError, OSError) as error:
                lost = str(error)
            else:
                raise AssertionError("nothing is lost without proxy_half_close")
    return f"{shares[0]:.0f} and {shares[1]:.0f} connections to two servers; without proxy_half_close: {lost}"
