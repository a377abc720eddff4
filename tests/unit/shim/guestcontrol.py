"""A guest's control program (native/LAUNCH.md, `guest`) for guestpeer.py in place of a machine.

``guestcontrol.py DIRECTORY CHANNEL MODE start|destroy|suspend|resume|reason``; the directory has
the pid in ``pid``, that of what the machine needs in ``needs``, each call in ``calls``; what is to
be said by ``reason`` in ``reason``; a command named in ``broken`` fails."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path


def program(channel: str, mode: str) -> list[str]:
    """The command that plays the guest; a path as MODE is vmm-init."""
    if mode.startswith("/"):
        return [sys.executable, __file__, channel, mode]
    return [sys.executable, str(Path(__file__).with_name("guestpeer.py")), channel, mode]


def run_init(channel: str, init: str) -> None:
    """vmm-init on a connection of this very process: the shim asks who its peer is."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(channel)
    connection.set_inheritable(True)
    unshare = ["unshare", "-mn", "--propagation", "private", init]
    os.execvp("unshare", [*unshare, "--guest-channel", str(connection.fileno())])


def start(here: Path, channel: str, mode: str) -> None:
    peer = subprocess.Popen(
        program(channel, mode),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=(here / "peer.err").open("a"),
        start_new_session=True,
    )
    (here / "pid").write_text(str(peer.pid))
    print(f"pid {peer.pid}", flush=True)
    if (here / "needs").exists():
        print(f"needs {(here / 'needs').read_text()}", flush=True)


def send(here: Path, number: int) -> None:
    try:
        os.killpg(int((here / "pid").read_text()), number)
    except (ProcessLookupError, FileNotFoundError):  # it ended, or was not started yet
        if number != signal.SIGKILL:
            raise


def main(directory: str, channel: str, mode: str, command: str) -> None:
    here = Path(directory)
    with (here / "calls").open("a") as calls:
        calls.write(command + "\n")
    broken = here / "broken"
    if broken.exists() and command in broken.read_text().split():
        sys.exit(f"Traceback of something\nlibvirt is out of order: {command}")
    if command == "start":
        start(here, channel, mode)
    elif command == "reason":
        print((here / "reason").read_text() if (here / "reason").exists() else "it crashed")
    else:
        numbers = {"destroy": signal.SIGKILL, "suspend": signal.SIGSTOP, "resume": signal.SIGCONT}
        send(here, numbers[command])


if __name__ == "__main__":
    main(*sys.argv[1:5]) if len(sys.argv) == 5 else run_init(*sys.argv[1:3])
