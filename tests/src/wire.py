"""Frames of an interface as lines of hexadecimal: sends what it reads, prints what comes in."""
import select, socket, struct, sys

SOL_PACKET, PACKET_AUXDATA, VLAN_VALID = 263, 8, 1 << 4

wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
wire.bind((sys.argv[1], 3))
print("ready", flush=True)
while True:
    for ready in select.select([wire, sys.stdin], [], [])[0]:
        if ready is wire:
            frame, notes, _, address = wire.recvmsg(65536, 64)
            # The kernel took the tag off, and says beside the frame which it was.
            for _, _, note in notes:
                status, _, _, _, _, tag, kind = struct.unpack("=IIIHHHH", note)
                if status & VLAN_VALID:
                    frame = frame[:12] + struct.pack("!HH", kind, tag) + frame[12:]
            if address[2] != socket.PACKET_OUTGOING:
                print(frame.hex(), flush=True)
        else:
            line = sys.stdin.readline()
            if not line:
                sys.exit()
            wire.send(bytes.fromhex(line))
