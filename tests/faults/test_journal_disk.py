"""The journal on real file systems that fail: full, erroring, read-only, removed, somebody else's.

Each scenario runs in a process of its own inside a mount namespace, on a small tmpfs or on ext4 in a file, which go
with it. What it acknowledged it says; what comes out afterwards must hold all of that.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tollspan.processor.errors import ConfigError, JournalError, JournalFull, JournalInUse
from tollspan.processor.journal import Journal
from tollspan.processor.journal.segment import segment_numbers, segment_path

COMMON = """
import fcntl, json, os, resource, struct, subprocess, sys, threading, time
from pathlib import Path
from tollspan.processor.counters import Counters
from tollspan.processor.errors import ConfigError, JournalError, JournalFull, JournalInUse
from tollspan.processor.journal import Journal

disk = Path(sys.argv[1])
place = disk / "journal"
ballast = disk / "ballast"

def fill():
    with open(ballast, "wb", 0) as file:
        for size in (65536, 4096, 512, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass

def append(journal, payload):
    try:
        journal.append(payload).wait(20)
        return None
    except JournalError as error:
        return error

def take_all(journal, release=False):
    found = []
    while (batch := journal.next_batch(20_000, timeout=0)) is not None:
        found += batch.payloads
        if release:
            journal.release(batch)
    return found

def shutdown_ext4():
    fd = os.open(disk, os.O_RDONLY)
    # EXT4_IOC_SHUTDOWN without flushing: from here on the device takes nothing more, as after a power cut.
    fcntl.ioctl(fd, 0x8004587D, struct.pack("I", 2))
    os.close(fd)

def say(**what):
    print(json.dumps(what, default=str))
"""


def namespace(mounts: str, script: str, folder: Path) -> dict[str, Any]:
    """Run a script with a mount of its own; skips where this machine does not permit that."""
    folder.mkdir()
    disk, image = folder / "disk", folder / "image"
    disk.mkdir()
    (folder / "script.py").write_text(COMMON + script)
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    mounts = mounts.format(disk=disk, image=image)
    command = f"({mounts}) >&2 || exit 77; exec {sys.executable} {folder}/script.py {disk} {image}"
    try:
        done = subprocess.run([*unshare, "sh", "-c", command], capture_output=True, text=True, timeout=100)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if done.returncode == 77 or "unshare:" in done.stderr:
        pytest.skip(f"no mounts of our own here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


TMPFS = "mount -t tmpfs -o size=3m tmpfs {disk}"
EXT4 = "truncate -s 12M {image} && mke2fs -q -t ext4 {image} && mount -o loop {image} {disk}"


@pytest.mark.parametrize("mounts", [TMPFS, EXT4], ids=["tmpfs", "ext4"])
def test_a_full_disk_refuses_keeps_what_was_acknowledged_and_recovers_by_itself(tmp_path: Path, mounts: str) -> None:
    said = namespace(
        mounts,
        """
counters = Counters()
journal = Journal(place, segment_bytes=200_000, counters=counters)
acked = []
for number in range(300):
    payload = b"%06d" % number * 100
    if append(journal, payload) is None:
        acked.append(payload)
    if number == 100:
        fill()
error = append(journal, b"z" * 30_000)
first = take_all(journal)          # handed out, and so frozen, on the full disk
assert first[: len(acked)] == acked
journal.close()
journal = Journal(place, segment_bytes=200_000, counters=counters)    # opened on the full disk
again = take_all(journal, release=True)
assert again == first, (len(again), len(first))
# Released segments make room; the rest comes with the ballast's going.
os.unlink(ballast)
late = [b"late %d" % n for n in range(50)]
wrong = [e for payload in late if (e := append(journal, payload)) is not None]
journal.close()
journal = Journal(place)
say(kind=type(error).__name__, message=str(error), acked=len(acked), refused=counters.get("journal.refused"),
    wrong=[str(e) for e in wrong], after=take_all(journal) == late, torn=counters.get("journal.torn_bytes"))
""",
        tmp_path / "run",
    )
    assert said["kind"] == "JournalFull"
    assert "No space left" in said["message"]
    assert 100 <= said["acked"] < 300
    assert said["refused"] >= 300 - said["acked"] + 1
    assert said["wrong"] == []
    assert said["after"] is True
    assert said["torn"] == 0, "what was refused leaves nothing behind"


def test_the_cap_on_file_sizes_is_a_full_disk(tmp_path: Path) -> None:
    said = namespace(
        "true",
        """
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
journal = Journal(place)
acked = [n for n in range(200) if append(journal, b"%d" % n * 1000) is None]
error = append(journal, b"x" * 200_000)
journal.close()
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
journal = Journal(place)
expected = [b"%d" % n * 1000 for n in acked]
say(kind=type(error).__name__, acked=len(acked), out=take_all(journal)[: len(acked)] == expected)
""",
        tmp_path / "run",
    )
    assert said == {"kind": "JournalFull", "acked": said["acked"], "out": True}
    assert 0 < said["acked"] < 200


@pytest.mark.parametrize("during", ["idle", "load"])
def test_a_disk_that_dies_loses_nothing_acknowledged_when_it_is_back(tmp_path: Path, during: str) -> None:
    said = namespace(
        EXT4,
        f"""
counters = Counters()
journal = Journal(place, segment_bytes=300_000, counters=counters)
acked, refused = [], []
lock = threading.Lock()

def work(name, count):
    for number in range(count):
        payload = b"%d:%d." % (name, number) * 50
        error = append(journal, payload)
        with lock:
            (refused if error else acked).append(payload if error is None else str(error))

threads = [threading.Thread(target=work, args=(name, 150)) for name in range(4)]
for each in threads: each.start()
if {during == "load"}:
    time.sleep(0.15)
    shutdown_ext4()
for each in threads: each.join()
if {during == "idle"}:
    shutdown_ext4()
work(9, 3)
assert all("Input/output error" in each or "replaced" in each for each in refused), refused[:3]
# Those that are still in memory are processed all the same; only that cannot be said of their batches' names.
journal.close()
subprocess.run(["umount", disk], check=True)
subprocess.run(["mount", "-o", "loop", sys.argv[2], disk], check=True)
counters = Counters()
journal = Journal(place, counters=counters)
out = take_all(journal)
goes_on = append(journal, b"goes on")
journal.close()
say(acked=len(acked), refused=len(refused), missing=len(set(acked) - set(out)), twice=len(out) - len(set(out)),
    goes_on=goes_on, corrupt=counters.get("journal.corrupt_records"), failures=counters.get("journal.failures"))
""",
        tmp_path / "run",
    )
    assert said["refused"] >= 3
    assert said["acked"] > 0
    assert (said["missing"], said["twice"], said["goes_on"], said["corrupt"]) == (0, 0, None, 0)


def test_a_file_system_that_turns_read_only_refuses_and_recovers_when_it_is_writable(tmp_path: Path) -> None:
    said = namespace(
        EXT4,
        """
journal = Journal(place)
acked = [b"%d" % n for n in range(50)]
for payload in acked:
    journal.append(payload).wait()
# As ext4 does by itself after an error of its own.
subprocess.run(["mount", "-o", "remount,abort", disk], check=True)
error = append(journal, b"refused")
journal.close()
try:
    Journal(place)
    opened = "yes"
except ConfigError as wrong:
    opened = str(wrong)
subprocess.run(["umount", disk], check=True)
subprocess.run(["mount", "-o", "loop", sys.argv[2], disk], check=True)
journal = Journal(place)
say(error=str(error), opened=opened, out=take_all(journal) == acked, goes_on=append(journal, b"on"))
""",
        tmp_path / "run",
    )
    assert "Read-only" in said["error"] or "Input/output" in said["error"]
    assert "cannot be used" in said["opened"]
    assert (said["out"], said["goes_on"]) == (True, None)


SERVICE = """
import grpc
from google.rpc import error_details_pb2, status_pb2
sys.path.insert(0, {end_to_end!r})
from service import METHOD, Service, chat, payload

service = Service(disk / "store", ["--store", f"chdb://{{sys.argv[2]}}", "--journal", str(place)])
service.folder = Path(sys.argv[2])
with service:
    channel = grpc.insecure_channel(service.info["grpc"])
    call = channel.unary_unary(METHOD)
    call(payload([chat(1)]), timeout=20)
    fill()
    refused = codes = retry = None
    for number in range(2, 400):
        try:
            call(payload([chat(number)]), timeout=20)
        except grpc.RpcError as error:
            codes = error.code().name
            status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
            details = error_details_pb2.RetryInfo()
            retry = any(each.Unpack(details) for each in status.details) and details.retry_delay.ToMilliseconds()
            refused = number
            break
    os.unlink(ballast)
    for _ in range(100):
        try:
            call(payload([chat(refused)]), timeout=20)
            break
        except grpc.RpcError:
            time.sleep(0.1)
    stats = service.stop()
    service.process = None
full = stats.get("receive.refused.journal_full", 0)
say(code=codes, retry=retry, accepted=stats["spans_acked"], refused=refused, full=full, rows=stats["ledger.rows"])
"""


def test_a_service_on_a_full_disk_asks_for_the_same_again_later_and_takes_it_then(tmp_path: Path) -> None:
    end_to_end = str(Path(__file__).parents[1] / "end_to_end")
    said = namespace(TMPFS, SERVICE.format(end_to_end=end_to_end), tmp_path / "run")
    assert said["code"] == "UNAVAILABLE"
    assert 0 < said["retry"] <= 5000
    assert said["full"] >= 1
    assert said["accepted"] == said["rows"] == said["refused"], "all that were acknowledged, none twice"


# -- without a mount ------------------------------------------------------------------------------------------------


def keep(journal: Journal, *payloads: bytes) -> None:
    for ticket in [journal.append(payload) for payload in payloads]:
        ticket.wait(10)


def out(journal: Journal) -> list[bytes]:
    found = []
    while (batch := journal.next_batch(1 << 30, timeout=0)) is not None:
        found += batch.payloads
    return found


@pytest.mark.parametrize("how", ["removed", "renamed", "replaced", "segment"])
def test_a_journal_that_is_taken_away_acknowledges_nothing_more(tmp_path: Path, how: str) -> None:
    import shutil

    place = tmp_path / "journal"
    journal = Journal(place)
    keep(journal, b"before")
    if how == "segment":
        segment_path(place, 1).unlink()
    elif how == "removed":
        shutil.rmtree(place)
    else:
        place.rename(tmp_path / "elsewhere")
        if how == "replaced":
            place.mkdir()
            Journal(place).close()
    with pytest.raises(JournalError):
        journal.append(b"to nobody").wait(10)
    if how == "segment":
        keep(journal, b"to the next segment")
        assert out(journal) == [b"before", b"to the next segment"], "what was in memory is handed out"
    else:
        with pytest.raises(JournalError):
            journal.append(b"again").wait(10)
        assert journal.stats()["refused"] == 2
    journal.close()
    if how in ("renamed", "replaced"):
        moved = Journal(tmp_path / "elsewhere")
        assert out(moved) == [b"before"]
        moved.close()


def test_two_processes_do_not_share_a_journal(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom tollspan.processor.journal import Journal\n"
        "j = Journal(sys.argv[1]); j.append(b'mine').wait(); print('open', flush=True); sys.stdin.readline()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "j")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"open\n"
    with pytest.raises(JournalInUse, match=f"pid {owner.pid}"):
        Journal(tmp_path / "j")
    owner.kill()
    owner.communicate()
    journal = Journal(tmp_path / "j")
    assert out(journal) == [b"mine"]
    journal.close()


def test_a_forked_child_does_not_hold_its_parents_journal(tmp_path: Path) -> None:
    program = (
        "import os, sys, time\nfrom tollspan.processor.journal import Journal\n"
        "j = Journal(sys.argv[1]); j.append(b'mine').wait()\n"
        "if os.fork() == 0:\n    print(os.getpid(), flush=True); time.sleep(60)\nos._exit(0)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "j")], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    child = int(owner.stdout.readline())
    owner.wait(20)
    try:
        journal = Journal(tmp_path / "j")
        assert out(journal) == [b"mine"]
        journal.close()
    finally:
        os.kill(child, 9)
        owner.stdout.close()


def test_somebody_elses_journal_is_refused_in_words(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    place = tmp_path / "journal"
    journal = Journal(place)
    keep(journal, b"mine")
    journal.close()
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    program = (
        "import os, sys\nfrom tollspan.processor.journal import Journal\nfrom tollspan.processor.errors import *\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try:\n    Journal(sys.argv[1])\nexcept ConfigError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(place)], capture_output=True, text=True, timeout=60)
    assert "cannot be used: Permission denied" in done.stdout, done.stderr
    journal = Journal(place)
    assert out(journal) == [b"mine"]
    journal.close()


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("call", ["pwritev", "fdatasync"])
def test_nothing_refused_was_acknowledged_and_nothing_acknowledged_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: int
) -> None:
    journal = Journal(tmp_path / "journal", segment_bytes=5000)
    original = getattr(os, call)
    fails = threading.Event()
    calls = [0]

    def sometimes(*args: Any) -> Any:
        calls[0] += 1
        if fails.is_set() and calls[0] % 3:
            if call == "pwritev":
                os.pwrite(args[0], b"".join(args[1])[:7], args[2])
            raise OSError(error, os.strerror(error))
        return original(*args)

    monkeypatch.setattr(os, call, sometimes)
    fails.set()
    acked, refused, hints = [], [], set()
    for number in range(200):
        payload = b"%04d" % number * 20
        try:
            journal.append(payload).wait(10)
            acked.append(payload)
        except JournalFull:
            assert error in (errno.ENOSPC, errno.EDQUOT)
            refused.append(payload)
        except JournalError as failure:
            hints.add(failure.hint)
            refused.append(payload)
    fails.clear()
    assert acked
    assert "" not in hints
    assert journal.stats()["refused"] == len(refused) > 0
    journal.close()
    again = Journal(tmp_path / "journal")
    assert out(again) == acked
    assert again.stats()["corrupt_records"] == 0
    again.close()


def test_a_read_only_directory_is_refused_when_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "journal")
    keep(journal, b"x")
    journal.close()
    original = os.open

    def read_only(path: Any, flags: int, *rest: int) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return original(path, flags, *rest)

    monkeypatch.setattr(os, "open", read_only)
    before = {p.name: p.read_bytes() for p in (tmp_path / "journal").iterdir()}
    with pytest.raises(ConfigError, match="Read-only file system"):
        Journal(tmp_path / "journal")
    assert {p.name: p.read_bytes() for p in (tmp_path / "journal").iterdir()} == before
    assert segment_numbers(tmp_path / "journal") == [1]
