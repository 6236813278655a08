"""Peers that keep a service busy while something happens to it."""

import collections
import socket
import threading

MESSAGE = b"0123456789abcdef"


class Load:
    """Peers in threads, until the block ends: some connect, echo a message and close in a loop, others stay connected
    until the service closes their connection. `ends` counts how the connections ended.

    `complete` is a whole echo, `drained` one whose connection the service then closed with a FIN, and `short` one that
    the service cut with a FIN: bytes that arrive after the start of a drain are not echoed.
    """

    def __init__(self, address, busy=6, patient=4):
        self.address = address
        self.ends = collections.Counter()
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self.loop, args=[self.echo_once]) for _ in range(busy)]
        self.threads += [threading.Thread(target=self.loop, args=[self.stay]) for _ in range(patient)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def loop(self, converse):
        while not self.stop.is_set():
            try:
                with socket.create_connection(self.address, 30) as peer:
                    end = converse(peer)
            except ConnectionRefusedError:
                end = "refused"
            except ConnectionResetError:
                end = "reset"
            except (OSError, AssertionError) as error:
                end = f"failed: {error}"
            self.ends[end] += 1
            if end not in ("complete", "short", "drained"):
                # A port that refuses would be asked some 100,000 times a second.
                self.stop.wait(0.01)

    def echo_once(self, peer):
        peer.sendall(MESSAGE)
        peer.shutdown(socket.SHUT_WR)
        return "complete" if received(peer) == MESSAGE else "short"

    def stay(self, peer):
        peer.sendall(MESSAGE)
        if received(peer, len(MESSAGE)) != MESSAGE:
            return "short"
        peer.settimeout(0.05)
        while not self.stop.is_set():
            try:
                assert peer.recv(1) == b"", "a byte that was not sent"
                return "drained"
            except TimeoutError:
                pass
        return "complete"

    def assert_lossless(self):
        """No connection was refused, reset or failed. Returns the counts."""
        counts = ", ".join(f"{count} {end}" for end, count in sorted(self.ends.items()))
        assert self.ends["complete"] and not set(self.ends) - {"complete", "short", "drained"}, counts
        return counts


def received(peer, size=1 << 20):
    """Returns what the peer receives, up to `size` bytes or the FIN."""
    echoed = b""
    while len(echoed) < size and (piece := peer.recv(64)):
        echoed += piece
    assert MESSAGE.startswith(echoed), f"sent {MESSAGE}, received {echoed}"
    return echoed
