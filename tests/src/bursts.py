"""Sends bursts of datagrams, each as one piece that the port is to cut, and hears an answer to every datagram."""

import socket
import sys

UDP_SEGMENT = 103
SIZE = 1000

host, port = sys.argv[1], int(sys.argv[2])
family = socket.AF_INET6 if ":" in host else socket.AF_INET
sender = socket.socket(family, socket.SOCK_DGRAM)
sender.settimeout(5)
sender.connect((host, port))
sender.send(b"hello")
sender.recv(65536)
sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, SIZE)
for burst in range(20):
    # The last one is shorter, and of an odd length.
    data = b"".join(bytes([burst, n]) * (SIZE // 2) for n in range(10))[:-333]
    sender.send(data)
    sent = sorted(data[at:at + SIZE] for at in range(0, len(data), SIZE))
    # An answer is a name, a space, and what was asked.
    heard = sorted(sender.recv(65536).split(b" ", 1)[1] for _ in sent)
    assert heard == sent, [len(text) for text in heard]
