"""kill -9 at random points: what the journal acknowledged is there once, in order, under the names it had.

The oracle is what a child process printed before it was killed, beside what the journal gives when it is opened again.
"""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tollspan.processor.counters import Counters
from tollspan.processor.inbox import Collection, Inbox
from tollspan.processor.journal import Journal
from tollspan.processor.journal.segment import segment_numbers

ROUNDS = 20
WRITERS = 4

CHILD = """
import hashlib, os, sys, threading
from tollspan.processor.journal import Journal

directory, round_, writers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
journal = Journal(directory, segment_bytes=40_000, memory_bytes=20_000)

said = threading.Lock()

def say(*words):
    with said:
        os.write(1, " ".join(words).encode() + b"\\n")

def write(writer):
    for i in range(10**9):
        name = f"{round_}:{writer}:{i}"
        journal.append(f"{name} {'.' * (i * 37 % 500)}".encode()).wait()
        say("acked", name)

def work():
    held = []
    while True:
        batch = journal.next_batch(5_000, timeout=10, linger=0.002)
        digest = hashlib.sha256(repr(batch.payloads).encode()).hexdigest()
        say("frozen", batch.token, digest, *(payload.split(b" ")[0].decode() for payload in batch.payloads))
        held.append(batch)
        if len(held) == 6:
            while held:
                batch = held.pop()
                # Said first: killed in between, it may come again, and nobody may rely on it any more.
                say("released", batch.token)
                journal.release(batch)

for writer in range(writers):
    threading.Thread(target=write, args=(writer,), daemon=True).start()
work()
"""


def killed(directory: Path, round_: int, lines: int) -> list[list[str]]:
    """What a child said until it was killed, shortly after its ``lines``-th line."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(directory), str(round_), str(WRITERS)], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    said = [child.stdout.readline() for _ in range(lines)]
    child.send_signal(signal.SIGKILL)
    said += child.stdout.readlines()
    child.wait(30)
    assert child.returncode == -signal.SIGKILL, b"".join(said[-5:])
    return [line.decode().split() for line in said if line.endswith(b"\n")]


def read(payload: bytes) -> str:
    """The name of a payload, after a look at the rest of it."""
    name, dots = payload.split(b" ")
    assert len(dots) == int(name.split(b":")[2]) * 37 % 500
    return name.decode()


def test_acknowledged_payloads_survive_kill_9_once_in_order_and_under_the_same_tokens(tmp_path: Path) -> None:
    chance = random.Random(20261120)
    directory = tmp_path / "journal"
    acked: set[str] = set()
    released: set[str] = set()
    batches: dict[str, tuple[str, list[str]]] = {}
    for round_ in range(ROUNDS):
        for kind, first, *rest in killed(directory, round_, chance.randrange(1, 900)):
            if kind == "acked":
                acked.add(first)
            elif kind == "released":
                released.add(first)
            else:
                batch_said = rest[0], rest[1:]
                assert batches.setdefault(first, batch_said) == batch_said, "a token named other payloads"

        journal = Journal(directory, segment_bytes=40_000)
        tokens: list[str] = []
        while (batch := journal.next_batch(5_000, timeout=0)) is not None:
            seen = hashlib.sha256(repr(batch.payloads).encode()).hexdigest(), [read(p) for p in batch.payloads]
            assert batches.setdefault(batch.token, seen) == seen, "a frozen batch came again otherwise"
            tokens.append(batch.token)
        stats = journal.stats()
        journal.close()

        there = [name for token in tokens for name in batches[token][1]]
        for writer in range(WRITERS):
            mine = [(int(r), int(n)) for r, w, n in (name.split(":") for name in there) if int(w) == writer]
            assert mine == sorted(set(mine)), "twice or out of order"
        assert batches.keys() - released <= set(tokens), "a frozen batch is gone"
        stored = [name for _, names in batches.values() for name in names]
        assert len(stored) == len(set(stored)), "a payload stands in two batches"
        assert acked <= set(stored), "acknowledged and lost"
        assert stats["corrupt_records"] == stats["lost_batches"] == 0
    assert len(acked) > ROUNDS
    assert released
    assert segment_numbers(directory)[0] > 1, "segments were released and removed on the way"


OWNER_CHILD = """
import sys
from pathlib import Path
from tollspan.processor.counters import Counters
from tollspan.processor.inbox import Collection, Inbox
from tollspan.processor.journal import Journal

journal = Journal(sys.argv[2])
Collection([Inbox(Path(sys.argv[1]))], journal, lambda _: None, Counters()).sweep()
"""

INBOX_CHILD = """
import os, sys
from tollspan.processor.inbox import Inbox, InboxWriter

writer = InboxWriter(Inbox(__import__("pathlib").Path(sys.argv[1])))
for number in range(10**9):
    writer.append(f"{sys.argv[2]}:{number} {'.' * (number * 37 % 5000)}".encode()).wait()
    os.write(1, f"{number}\\n".encode())
"""


def test_what_an_inbox_acknowledged_survives_kill_9_of_writer_and_owner(tmp_path: Path) -> None:
    chance = random.Random(7)
    folder, journal_folder = tmp_path / "inbox", tmp_path / "journal"
    acked: set[str] = set()
    stored: list[str] = []
    for round_ in range(12):
        child = subprocess.Popen([sys.executable, "-c", INBOX_CHILD, str(folder), str(round_)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        said = [child.stdout.readline() for _ in range(chance.randrange(1, 120))]
        child.send_signal(signal.SIGKILL)
        said += child.stdout.readlines()
        child.wait(30)
        acked |= {f"{round_}:{int(line)}" for line in said if line.endswith(b"\n")}
        if round_ % 3 == 2:
            # The owner dies too, somewhere between taking a file into the journal and removing it.
            owner = subprocess.Popen([sys.executable, "-c", OWNER_CHILD, str(folder), str(journal_folder)])
            time.sleep(chance.random() * 0.3 + 0.4)
            owner.kill()
            owner.wait(30)
    journal = Journal(journal_folder)
    Collection([Inbox(folder)], journal, lambda _: None, Counters()).sweep()
    assert Inbox(folder).waiting() == []
    while (batch := journal.next_batch(1 << 20, timeout=0)) is not None:
        stored += [payload.split(b" ")[0].decode() for payload in batch.payloads if payload]
        for payload in batch.payloads:
            name, dots = payload.split(b" ")
            assert len(dots) == int(name.split(b":")[1]) * 37 % 5000, "whole, or not there"
    journal.close()
    assert len(acked) > 100
    assert acked <= set(stored), "acknowledged and lost"
    assert not list(folder.glob("*.damaged"))
