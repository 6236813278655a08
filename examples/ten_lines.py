# How not to do it: the server that everybody writes first. `src/docs/tutorial.md` says what is wrong with it,
# and `cargo run --example conformance -- 127.0.0.1:9999` finds it out.
import socket, sys

door = socket.socket()
door.bind(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 9999))
door.listen(1)
print("listening on tcp://%s:%d" % door.getsockname(), flush=True)
while True:
    peer, address = door.accept()
    text = peer.recv(1024).decode()
    peer.send(text.encode())
    peer.close()
