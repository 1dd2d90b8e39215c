"""Send back what comes: TCP ports 8001 to 8006, UDP ports 8006 and 8007, IPv4 and IPv6."""

import asyncio


class Datagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        self.transport.sendto(data, addr)


async def stream(reader, writer):
    while data := await reader.read(100):
        writer.write(data)
        await writer.drain()
    writer.close()


async def main():
    for port in range(8001, 8007):
        await asyncio.start_server(stream, None, port)
    for port in (8006, 8007):
        await asyncio.get_running_loop().create_datagram_endpoint(Datagrams, local_addr=("::", port))
    await asyncio.Event().wait()


asyncio.run(main())
