"""One owner a run: a lock file that names its owner, and a rule for when that owner is gone.

The file is created with ``O_EXCL``, so it also works where two machines share a folder. Looking at a stale lock and replacing it
are one step under ``flock`` on a guard file beside it, so that two takers never both win. The guard is never deleted:
removing a file that others wait on would let two of them in.
"""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import psutil

from cptlab.errors import StoreError

GUARD = ".guard"
STALE_SECONDS = 600.0  # without a heartbeat, for an owner on another machine
HEARTBEAT_SECONDS = 20.0  # between two heartbeats
TORN_SECONDS = 10.0  # a lock without content: its writer died between creating and filling it
START_TOLERANCE_SECONDS = 2.0  # the boot time that start times are counted from is kept in whole seconds
POLL_SECONDS = 0.2


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Hold the guard of ``folder`` for a short read-change-write; waits for whoever holds it. Do not nest."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / GUARD).open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # freed by closing, also when the process is killed
        yield


def _process_start(pid: int) -> float | None:
    """When the live process ``pid`` started (seconds since the epoch); None when there is none. A zombie is dead."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return 0.0  # it exists and is not ours to look at


def _read(path: Path) -> tuple[dict, float] | None:
    """The lock's content ({} when torn) and its last heartbeat; None when there is no lock."""
    try:
        beat, text = path.stat().st_mtime, path.read_text()
    except FileNotFoundError:
        return None
    try:
        content = json.loads(text)
        if isinstance(content, dict) and {"host", "pid", "started", "token"} <= set(content):
            return content, beat
    except ValueError:
        pass
    return {}, beat


def _is_live(content: dict, beat: float) -> bool:
    age = time.time() - beat
    if not content:
        return age < TORN_SECONDS
    if content["host"] != socket.gethostname():
        return age < STALE_SECONDS
    start = _process_start(content["pid"])
    if start is None:
        return False
    # Another start time means that the number was given to another process, which then began after the owner's last heartbeat.
    # (Where the clock was set meanwhile, start times of living processes move too; their next heartbeat shows that they live.)
    return abs(start - content["started"]) <= START_TOLERANCE_SECONDS or start < beat - START_TOLERANCE_SECONDS


def live_owner(path: Path) -> dict | None:
    """``{host, pid, started, token}`` of the lock's living owner ({} while it is being written); None when free or stale."""
    found = _read(path)
    return found[0] if found is not None and _is_live(*found) else None


def describe(owner: dict) -> str:
    """The owner in words."""
    return f"process {owner['pid']} on {owner['host']}" if owner else "a process that is just taking it"


class RunLock:
    """The right to train one run; a context manager.

    Args:
        path: the lock file.
        name: what is locked, for messages.
        wait: wait until it is free (polls every 0.2 s); else raise at once.
        on_wait: called with the owner when waiting begins, and again whenever another owner is waited for.

    Raises:
        StoreError: on entering with ``wait=False`` while another owner lives, saying who.
    """

    def __init__(self, path: Path, name: str, wait: bool = True, on_wait: Callable[[dict], None] | None = None):
        self.path, self.name, self.wait, self.on_wait = Path(path), name, wait, on_wait
        self.token = ""
        self._pid = 0
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self._pid, self.token = os.getpid(), secrets.token_hex(8)
        try:
            waited_for = None
            while (owner := self._try_take()) is not None:
                if not self.wait:
                    raise StoreError(f"run {self.name} is held by {describe(owner)} ({self.path}): wait for it, or end that process")
                if self.on_wait is not None and waited_for != (key := owner.get("token")):
                    waited_for = key
                    self.on_wait(owner)
                time.sleep(POLL_SECONDS)
        except BaseException:  # an interrupt just after taking it: this process lives on, nobody else could ever take it
            self.release()
            raise
        self._ended.clear()
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def _beat(self) -> None:
        """Say that the owner lives, from a thread: building a corpus, compiling or evaluating may take longer than a lock lasts."""
        while not self._ended.wait(HEARTBEAT_SECONDS):
            if not self.is_ours():  # the training loop notices and stops
                return
            with contextlib.suppress(FileNotFoundError):
                os.utime(self.path)

    def __exit__(self, *_) -> None:
        self.release()

    def _try_take(self) -> dict | None:
        """Take the lock and return None, or return who has it."""
        with guarded(self.path.parent):
            owner = live_owner(self.path)
            if owner is not None:
                return owner
            self.path.unlink(missing_ok=True)
            content = {"host": socket.gethostname(), "pid": self._pid, "started": _process_start(self._pid), "token": self.token}
            try:
                handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:  # another machine, on a file system whose flock does not reach it
                return live_owner(self.path) or {}
            try:
                os.write(handle, json.dumps(content).encode())
            finally:
                os.close(handle)
        return None

    def is_ours(self) -> bool:
        """Whether the lock file still names this owner."""
        found = _read(self.path)
        return found is not None and os.getpid() == self._pid and found[0].get("token") == self.token

    def check(self) -> None:
        """
        Raises:
            StoreError: another owner took the run over (this one looked dead); two must never write one record.
        """
        if not self.is_ours():
            raise StoreError(
                f"the lock of run {self.name} ({self.path}) was taken over or removed: this run stops; start it again to resume it"
            )

    def release(self) -> None:
        """Free the run if it is still ours; a process forked from the owner never frees it."""
        self._ended.set()
        if self.token and os.getpid() == self._pid and self.path.parent.is_dir():
            with guarded(self.path.parent):
                if self.is_ours():
                    self.path.unlink(missing_ok=True)
        self.token = ""
