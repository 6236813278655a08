"""Other machines, as network namespaces."""

import contextlib

from .tools import process, readlink, run, wait_for


@contextlib.contextmanager
def machine(name, ours, theirs):
    """A network namespace that represents another machine, with a cable to it. Yields the prefix of its commands."""
    with process("unshare", "--net", "sleep", "300") as holder:
        namespace = f"/proc/{holder.pid}/ns/net"
        wait_for(name, lambda: readlink(namespace) not in ("", readlink("/proc/self/ns/net")))
        enter = ["nsenter", f"--net={namespace}"]
        run("ip", "link", "add", name, "type", "veth", "peer", "name", "cable", "netns", str(holder.pid))
        run("ip", "address", "add", ours, "peer", theirs, "dev", name)
        run("ip", "link", "set", name, "up")
        run(*enter, "ip", "address", "add", theirs, "peer", ours, "dev", "cable")
        run(*enter, "ip", "link", "set", "cable", "up")
        run(*enter, "ip", "link", "set", "lo", "up")
        yield enter
