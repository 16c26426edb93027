"""A process for tests of the starter: serves a socket, keeps a diary, ends when told. ``fake_process NAME DIARY SOCKET [fail|brief]``."""

import signal
import socket
import sys
import time
from pathlib import Path


def write(diary: str, line: str) -> None:
    with open(diary, "a") as file:
        file.write(line + "\n")


def main() -> int:
    name, diary, path, *behaviour = sys.argv[1:]
    stopped = []
    signal.signal(signal.SIGINT, lambda *_: stopped.append(True))
    write(diary, f"start {name}")
    print(f"{name} speaks", flush=True)
    if behaviour == ["fail"]:
        print("no arm on the bus", file=sys.stderr)
        return 3
    Path(path).unlink(missing_ok=True)  # of one that was killed
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen(16)
        while not stopped and behaviour != ["brief"]:
            time.sleep(0.01)
    write(diary, f"end {name}")
    return 5 if behaviour == ["brief"] else 0


if __name__ == "__main__":
    sys.exit(main())
