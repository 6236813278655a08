# asyncio as in its documentation: streams, one coroutine per connection.
import asyncio


async def echo(reader, writer):
    try:
        while received := await reader.read(65536):
            writer.write(received)
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()


async def main():
    # TCP_NODELAY is asyncio's default.
    server = await asyncio.start_server(echo, "127.0.0.1", 0, backlog=1024)
    host, port = server.sockets[0].getsockname()
    print(f"listening on tcp://{host}:{port}", flush=True)
    await server.serve_forever()


asyncio.run(main())
