"""Peers and scrapers of a running echod."""

import contextlib
import http.client
import itertools
import re
import socket
import subprocess
import threading
import time

from .tools import process, release


def echo(address, payload, pause_before_reading=0.0, during_a_drain=False, timeout=20):
    """Sends the payload and a FIN, reads to the end, and compares. Returns whether the whole payload was echoed: only
    during a drain may it be less, because bytes that arrive after the signal are not echoed. Even then a refusal or a
    reset is an error.
    """
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family) as peer:
        peer.settimeout(timeout)
        if pause_before_reading:
            # Only a little of the echo fits into this buffer; the rest has to wait on the way.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        peer.connect(address)

        def send():
            peer.sendall(payload)
            peer.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        if pause_before_reading:
            # The payload and the FIN are sent and nothing is read. The pause is the workload, not a synchronization.
            sender.join()
            time.sleep(pause_before_reading)
        returned = bytearray()
        while piece := peer.recv(1 << 16):
            returned += piece
        sender.join()
    difference = next((i for i, (a, b) in enumerate(itertools.zip_longest(payload, returned)) if a != b), None)
    short = during_a_drain and difference == len(returned)
    sizes = f"{len(payload)} bytes sent, {len(returned)} echoed"
    assert short or difference is None, f"{sizes}, first difference at {difference}"
    return difference is None


def is_ended(peer):
    """Returns whether the peer received a FIN within a second. A reset is an error."""
    peer.settimeout(1)
    try:
        return peer.recv(1) == b""
    except TimeoutError:
        return False


def get(address, path):
    """Returns the status and text of an HTTP response."""
    connection = http.client.HTTPConnection(*address, timeout=5)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def metric(address, name):
    status, text = get(address, "/metrics")
    assert status == 200, status
    return float(re.search(rf"^{name} (\S+)$", text, re.M)[1])


@contextlib.contextmanager
def daemon(*arguments, prefix=(), **options):
    """A running echod that is listening."""
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with process(*prefix, release(), *arguments, **options) as child:
        first = child.stdout.readline()
        assert first.startswith("listening on "), first + child.stderr.read()
        yield child
