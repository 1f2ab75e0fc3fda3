"""A stand-in for a service manager, as far as sd_notify(3) and the descriptor store go.

    manager.py NOTIFY_SOCKET PROGRAM [ARGUMENT...]

Runs the program, keeps the descriptors that it gives away, and starts it again at once, with these, when a
signal has ended it. Says what it was told, a line each: READY, RELOADING, MAINPID n, STARTED n, KEPT n.
"""
import array
import ctypes
import os
import select
import signal
import socket
import sys
import time

path, program = sys.argv[1], sys.argv[2:]
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.bind(path)
kept = []  # (name, descriptor)
main = None


def say(*words):
    print(*words, flush=True)


def start():
    pid = os.fork()
    if pid == 0:
        # Out of the way first: the places from 3 on are theirs.
        high = [os.dup2(fd, 1000 + n) for n, (_, fd) in enumerate(kept)]
        for n, fd in enumerate(high):
            os.dup2(fd, 3 + n, inheritable=True)
        for fd in high:
            os.close(fd)
        os.environ["NOTIFY_SOCKET"] = path
        os.environ["WATCHDOG_USEC"] = "2000000"
        if kept:
            os.environ["LISTEN_PID"] = str(os.getpid())
            os.environ["LISTEN_FDS"] = str(len(kept))
            os.environ["LISTEN_FDNAMES"] = ":".join(name for name, _ in kept)
        os.execvp(program[0], program)
    say("STARTED", pid)
    return pid


def stop(*_):
    try:
        os.kill(main, signal.SIGKILL)
    except ProcessLookupError:
        pass
    os.unlink(path)
    os._exit(0)


# As a service manager has orphans: whoever takes over is its child.
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
signal.signal(signal.SIGTERM, stop)
main = start()
last_alive = None
while True:
    readable, _, _ = select.select([notify], [], [], 0.005)
    if readable:
        text, ancillary, _, _ = notify.recvmsg(65536, socket.CMSG_SPACE(4 * 253))
        fields = dict(line.split("=", 1) for line in text.decode().split("\n") if "=" in line)
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors = array.array("i", data)
                if "FDSTORE" in fields:
                    known = {os.fstat(fd).st_ino for _, fd in kept}
                    for fd in descriptors:
                        if os.fstat(fd).st_ino in known:
                            os.close(fd)
                        else:
                            kept.append((fields["FDNAME"], fd))
                    say("KEPT", len(kept))
        if "FDSTOREREMOVE" in fields:
            for name, fd in kept:
                if name == fields["FDNAME"]:
                    os.close(fd)
            kept = [(name, fd) for name, fd in kept if name != fields["FDNAME"]]
            say("KEPT", len(kept))
        if "MAINPID" in fields:
            main = int(fields["MAINPID"])
            say("MAINPID", main)
        for word in ("READY", "RELOADING", "STOPPING", "WATCHDOG"):
            if word in fields:
                say(word)
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        pid, status = 0, 0
    if pid == main and os.WIFSIGNALED(status):
        time.sleep(0.01)
        main = start()
