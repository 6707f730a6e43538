"""Run a command with the network cut: python tests/without_network.py COMMAND [ARGUMENT ...].

The command gets a network namespace of its own, in which only the loopback device is up (Jupyter kernels and TFF's worker talk over
it). Where the system allows no namespace, the nearest thing is done and said: pprml's own fetches are refused and every proxy-aware
client is sent to a closed port.
"""

import ctypes
import fcntl
import os
import socket
import struct
import sys

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1


def cut_network() -> bool:
    """Move this process to a new network namespace; False where the system does not allow it."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        uid, gid = os.getuid(), os.getgid()
        if libc.unshare(CLONE_NEWNET):
            if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET):
                return False
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"{uid} {uid} 1"),
                ("gid_map", f"{gid} {gid} 1"),
            ):
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
    except (AttributeError, OSError):
        return False
    return True


if __name__ == "__main__":
    os.environ["PPRML_OFFLINE"] = "1"
    if cut_network():
        print("the network is cut: a namespace with loopback only", flush=True)
    else:
        print(
            "no network namespace is allowed here: fetches are refused and proxies point at a closed port",
            flush=True,
        )
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            os.environ[name] = os.environ[name.upper()] = "http://127.0.0.1:9"
    os.execvp(sys.argv[1], sys.argv[1:])
