"""One run at a time in a directory."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gqakit.checkpoint.atomic import output_errors
from gqakit.errors import OutputError

LOCK_FILE = "lock"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a directory, which must exist. The file names the holder.

    The operating system drops the lock with the process that holds it, however that ends, so what a killed run left is
    no lock. Where it has no such locks (Windows), a file that names a live process is one.

    Raises:
        OutputError: another run holds it.
    """
    path = directory / LOCK_FILE
    with output_errors(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _take(handle):
            holder = os.read(handle, 200).decode(errors="replace").strip() or "unknown"
            raise OutputError(
                f"{directory}: in use by another run ({holder}). Wait for it or stop it, or choose another output."
            )
        with output_errors(path):
            os.ftruncate(handle, 0)
            os.lseek(handle, 0, os.SEEK_SET)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
        path.unlink(missing_ok=True)  # only where nothing went wrong: a state may lie beside it
    finally:
        os.close(handle)


def _take(handle: int) -> bool:
    try:
        import fcntl
    except ImportError:
        return not _names_a_live_process(handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _names_a_live_process(handle: int) -> bool:
    words = os.read(handle, 200).decode(errors="replace").split()
    os.lseek(handle, 0, os.SEEK_SET)
    if len(words) != 4 or words[3] != socket.gethostname() or not words[1].isdigit():
        return False
    import psutil

    return int(words[1]) != os.getpid() and psutil.pid_exists(int(words[1]))
