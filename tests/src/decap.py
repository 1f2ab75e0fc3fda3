"""Takes packets out of their tunnels and gives them to this host: for kernels without ipip and GUE.

IP in IP of both families, inside and outside, and GUE (both variants) on UDP port 6080.
"""
import fcntl, os, select, socket, struct

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH", b"decap", IFF_TUN | IFF_NO_PI))
os.system("ip link set decap up")

GUE = 6080
sockets = {}
for family in (socket.AF_INET, socket.AF_INET6):
    for protocol in (4, 41):
        raw = socket.socket(family, socket.SOCK_RAW, protocol)
        sockets[raw] = "ip4" if family == socket.AF_INET else "ip6"
    gue = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        gue.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    gue.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", GUE))
    sockets[gue] = "gue"

while True:
    for ready in select.select(list(sockets), [], [])[0]:
        packet = ready.recv(65536)
        if sockets[ready] == "ip4":
            packet = packet[(packet[0] & 15) * 4:]
        elif sockets[ready] == "gue" and packet[0] >> 6 == 0:
            packet = packet[4 + (packet[0] & 31) * 4:]
        try:
            os.write(tun, packet)
        except OSError:
            pass
