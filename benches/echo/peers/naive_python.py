# The tutorial's server: one client at a time, one message of at most 1024 bytes, then it closes.
# The tutorial's backlog is 1. Here it is 128, because most clients would otherwise wait a second for a retransmitted SYN.
import socket

listener = socket.create_server(("127.0.0.1", 0), backlog=128)
host, port = listener.getsockname()
print(f"listening on tcp://{host}:{port}", flush=True)
while True:
    stream, peer = listener.accept()
    with stream:
        stream.sendall(stream.recv(1024))
