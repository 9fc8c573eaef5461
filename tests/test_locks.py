"""Locks with real processes: one owner at a time, a killed owner is replaced, a living one never."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

import cptlab
from cptlab.errors import StoreError
from cptlab.runs import locks
from cptlab.runs.locks import RunLock, live_owner

SOURCE = str(Path(cptlab.__file__).parents[1])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "lock"


@pytest.fixture
def start():
    """Start python code in another process; whatever still runs at the end is killed."""
    processes = []

    def run(code, *arguments):
        environment = os.environ | {"PYTHONPATH": SOURCE}
        command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.communicate()


HOLD = """
    import sys, time
    from cptlab.runs.locks import RunLock
    with RunLock(sys.argv[1], "r"):
        print("held", flush=True)
        time.sleep(float(sys.argv[2]))
"""


def write_lock(path, age=0.0, **changes):
    content = {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time(), "token": "other"} | changes
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    os.utime(path, (time.time() - age,) * 2)


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_file_names_its_owner_and_goes_with_it(path):
    with RunLock(path, "r") as lock:
        content = json.loads(path.read_text())
        assert content["host"] == socket.gethostname()
        assert content["pid"] == os.getpid()
        assert content["started"] == pytest.approx(psutil.Process().create_time(), abs=2)
        assert live_owner(path) == content
        assert lock.is_ours()
    assert not path.exists()
    assert live_owner(path) is None


def test_it_is_freed_by_an_exception(path):
    with pytest.raises(ZeroDivisionError), RunLock(path, "r"):
        raise ZeroDivisionError
    assert not path.exists()


def test_without_waiting_the_owner_is_named(path, start):
    process = start(HOLD, path, 60)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(StoreError, match=f"process {process.pid} on {socket.gethostname()}"), RunLock(path, "r", wait=False):
        pass
    assert live_owner(path)["pid"] == process.pid  # the failed try took nothing away


def test_waiting_tells_once_and_goes_on_when_freed(path, start):
    process = start(HOLD, path, 0.8)
    assert process.stdout.readline() == "held\n"
    told = []
    begin = time.monotonic()
    with RunLock(path, "r", on_wait=told.append):
        waited = time.monotonic() - begin
    assert [owner["pid"] for owner in told] == [process.pid]
    assert 0.2 < waited < 10


def test_a_killed_owner_is_replaced_even_as_a_zombie(path, start):
    process = start(HOLD, path, 60)
    assert process.stdout.readline() == "held\n"
    os.kill(process.pid, signal.SIGKILL)
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:  # not waited for: still in the process table
        time.sleep(0.01)
    assert path.exists()
    with RunLock(path, "r", wait=False):
        assert live_owner(path)["pid"] == os.getpid()


def test_a_dead_process_and_another_one_with_its_number_are_stale(path):
    write_lock(path, pid=dead_pid())
    assert live_owner(path) is None
    # This process began long after the recorded start and after the last heartbeat.
    write_lock(path, age=7200, started=psutil.Process().create_time() - 86400)
    assert live_owner(path) is None
    with RunLock(path, "r", wait=False) as lock:
        assert lock.is_ours()


def test_a_living_process_stays_owner_when_the_clock_was_set(path):
    write_lock(path, started=psutil.Process().create_time() - 3600)
    os.utime(path, (time.time() + 60,) * 2)  # a heartbeat since: the process with this number is older than it
    assert live_owner(path) is not None


def test_another_machine_is_believed_for_ten_minutes(path):
    write_lock(path, age=590, host="elsewhere", pid=dead_pid())
    assert live_owner(path)["host"] == "elsewhere"
    write_lock(path, age=610, host="elsewhere")
    assert live_owner(path) is None
    with RunLock(path, "r", wait=False):
        pass


def test_a_torn_lock_is_stale_after_ten_seconds(path):
    for text in ("", '{"host": "x"', "[]", '{"host": "x"}'):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        assert live_owner(path) == {}
        os.utime(path, (time.time() - 11,) * 2)
        assert live_owner(path) is None
    with RunLock(path, "r", wait=False):
        pass


def test_check_and_release_respect_a_new_owner(path):
    with RunLock(path, "r") as lock:
        lock.check()
        write_lock(path)  # somebody took it over
        with pytest.raises(StoreError, match="taken over"):
            lock.check()
    assert json.loads(path.read_text())["token"] == "other"  # not ours to remove


def test_a_lock_beats_by_itself_until_it_is_freed_or_taken_over(path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.02)

    def beats() -> bool:
        os.utime(path, (1, 1))
        end = time.monotonic() + 0.5
        while path.stat().st_mtime == 1 and time.monotonic() < end:
            time.sleep(0.005)  # the owner is deep in one call: it builds a corpus, or compiles
        return path.stat().st_mtime != 1

    with RunLock(path, "r"):
        assert beats() and beats()
    write_lock(path)
    assert not beats()
    path.unlink()
    with RunLock(path, "r"):
        write_lock(path)  # taken over by another owner
        assert not beats()


def test_a_forked_child_does_not_free_it(path, start):
    process = start(
        """
        import os, sys
        from cptlab.runs.locks import RunLock
        lock = RunLock(sys.argv[1], "r")
        with lock:
            child = os.fork()
            if child == 0:
                lock.release()
                os._exit(0)
            os.waitpid(child, 0)
            print(lock.is_ours())
        """,
        path,
    )
    out, err = process.communicate(timeout=30)
    assert out == "True\n", err


def test_an_interrupt_while_taking_it_leaves_nothing(path, monkeypatch):
    take = RunLock._try_take

    def interrupted(self):
        take(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunLock, "_try_take", interrupted)
    with pytest.raises(KeyboardInterrupt), RunLock(path, "r"):
        pass
    assert not path.exists()


def test_threads_of_one_process_exclude_each_other(path, monkeypatch):
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.005)
    inside, most = [0], [0]

    def work():
        for _ in range(5):
            with RunLock(path, "r"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.002)
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [1]
    assert not path.exists()


def test_six_processes_contend_and_take_over_from_killed_ones(path, start):
    write_lock(path, pid=dead_pid())  # all begin by taking over from a dead owner
    code = """
        import os, signal, sys, time
        from pathlib import Path
        from cptlab.runs import locks

        locks.POLL_SECONDS = 0.003
        path = Path(sys.argv[1])
        marker, log = path.with_name("inside"), path.with_name("log")
        print("ready", flush=True)
        while not path.with_name("go").exists():
            time.sleep(0.002)
        for i in range(12):
            lock = locks.RunLock(path, "r").__enter__()
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))  # fails if another owner is inside
            time.sleep(0.002)
            lock.check()
            with log.open("a") as stream:
                stream.write(f"{os.getpid()}\\n")
            marker.unlink()
            if i == 11:
                os.kill(os.getpid(), signal.SIGKILL)  # dies as owner: the others must take over
            lock.release()
    """
    processes = [start(code, path) for _ in range(6)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    path.with_name("go").touch()
    for process in processes:
        _, err = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, err
    owners = path.with_name("log").read_text().split()
    assert sorted(owners) == sorted(str(process.pid) for process in processes for _ in range(12))
    assert path.exists()  # the last one died as owner
    assert live_owner(path) is None
