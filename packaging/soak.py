#!/usr/bin/env python3
"""Asks a real server of every kind of question for a while, and fails if it holds more in the end than in the beginning.

    packaging/soak.py --binary target/release/gatepost                    10 minutes
    packaging/soak.py --binary target/release/gatepost --duration 1h

The load comes in spells. In each, four processes ask at once, over new connections: known questions, new ones, batches and
streams (--rate says how many). Before each the policies change. Between two spells nobody asks: then threads, tasks of the
runtimes (as the server's own metric tells) and file descriptors are counted. Memory is the median of a spell. The first third
of the time is for warming up: caches fill, allocators keep what they have. After it

    memory may grow by 5 % and 4 MiB, from the third that follows to the last,
    threads and tasks may not become more,
    file descriptors may not either, but for 4: segments of the audit trail come and go,

and of a hundred questions of a spell at most one may go without an answer, when something else takes the processors or the
disk for a moment. A soak of a few seconds tries that all of this works and says nothing about
the server. Needs Python alone. A record takes a kilobyte in the temporary folder ($TMPDIR); 1 GiB of them are kept at most.

Exit codes: 0 nothing grew, 1 something did, or too many questions went without an answer, 2 the command line is wrong.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

MIB = 1024 * 1024
# What the last third may hold more of than the one before.
MEMORY_PART, MEMORY_MORE, DESCRIPTORS_MORE = 0.05, 4 * MIB, 4
# Of the questions of a spell.
UNANSWERED = 0.01
SPELLS = 20
# Seconds. What is shorter only shows that all of this works.
SHORT = 60
# Between two looks at the memory.
GLANCE = 0.25
# How long anything may take that is not the load itself: start, end, the last connection that goes.
PATIENCE = 60
# How the questions of a second are asked: the part of all, the questions of a call, and what tells `gatepost bench` so.
KINDS = {
    "known": (0.4, 1, []),
    "new": (0.2, 1, ["--fresh"]),
    "batch": (0.2, 20, ["--shape", "batch:20", "--fresh"]),
    "stream": (0.2, 1, ["--shape", "stream"]),
}


class Server:
    """`gatepost serve` in a world made for it, and what the kernel says of its process."""

    def __init__(self, binary, folder):
        self.binary, self.folder = binary, folder
        subprocess.run([binary, "bench", "world", "--folder", folder], check=True)
        settings = json.loads((folder / "gatepost.yaml").read_text())
        # Small enough to be full, and to turn over, long before the end.
        settings["cache"] = {"decisions": 10_000}
        settings["audit"]["spool"].update({"segment_bytes": "16MiB", "max_bytes": "1GiB"})
        (folder / "gatepost.yaml").write_text(json.dumps(settings))
        self.log = folder / "log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GATEPOST_")}
        with self.log.open("w") as log:
            command = [binary, "serve", "--config", folder / "gatepost.yaml"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        self.address, self.operators = self.until(self.serving)

    def serving(self):
        for line in self.log.read_text().splitlines():
            told = json.loads(line) if line.startswith("{") else {}
            told = told.get("fields", told)
            if told.get("message") == "serving":
                return told["address"], told["ops_address"]
        return None

    def until(self, asked):
        """What `asked` gives at last, if it is not long in coming."""
        deadline = time.monotonic() + PATIENCE
        while (got := asked()) is None:
            if self.process.poll() is not None or time.monotonic() > deadline:
                fail(f"the server does not do as it should:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.05)
        return got

    def ask(self, rate, arguments, seconds):
        files = {"ca": "ca.pem", "certificate": "bench.pem", "key": "bench.key", "token": "alice.token"}
        named = [word for flag, name in files.items() for word in (f"--{flag}", self.folder / name)]
        command = [
            self.binary, "bench", "--address", self.address, *named, "--question", self.folder / "question.yaml",
            "--rate", f"{rate:.1f}", "--warmup", "0s", "--duration", f"{max(int(seconds * 1000), 10)}ms", "--connections", "4",
            "--deadline", "10s", "--output", "json", *arguments,
        ]  # fmt: skip
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def memory(self):
        return int(re.search(r"^VmRSS:\s+(\d+) kB", self.proc("status"), re.M)[1]) * 1024

    def threads(self):
        return int(re.search(r"^Threads:\s+(\d+)", self.proc("status"), re.M)[1])

    def tasks(self):
        text = urllib.request.urlopen(f"http://{self.operators}/metrics", timeout=PATIENCE).read().decode()
        return int(float(re.search(r"^gatepost_runtime_tasks(?:\{.*\})? (\S+)$", text, re.M)[1]))

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def connections(self):
        """Open connections, as the operators' door would tell: sockets that the server has and nobody listens on."""
        links = (f"/proc/{self.process.pid}/fd/{it}" for it in os.listdir(f"/proc/{self.process.pid}/fd"))
        own = {found[1] for link in links if (found := re.fullmatch(r"socket:\[(\d+)\]", read_link(link)))}
        rows = (line.split() for line in self.proc("net/tcp").splitlines()[1:])
        return sum(row[9] in own for row in rows if row[3] != "0A")

    def proc(self, name):
        return pathlib.Path(f"/proc/{self.process.pid}/{name}").read_text()

    def change_policies(self, number):
        policy = self.folder / "policies" / "soak.cedar"
        text = f'@id("soak-{number}") forbid (principal, action == Action::"User.delete", resource);\n'
        aside = policy.with_name(".soak.new")
        aside.write_text(text)
        aside.rename(policy)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


def read_link(path):
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""


class Spell:
    """Everybody asks for so many seconds; then all is quiet."""

    def __init__(self, server, number, seconds, rate):
        server.change_policies(number)
        asking = {
            kind: server.ask(rate * part / items, arguments, seconds) for kind, (part, items, arguments) in KINDS.items()
        }
        memory, over = [], threading.Event()
        watch = threading.Thread(target=lambda: self.watch(server, memory, over))
        watch.start()
        self.answers, self.wrong = 0, []
        for kind, process in asking.items():
            said, complaint = process.communicate(timeout=seconds + PATIENCE)
            self.take(kind, said, complaint, process.returncode)
        over.set()
        watch.join()
        self.memory = statistics.median(memory)
        server.until(lambda: True if server.connections() == 0 else None)
        self.threads, self.tasks, self.descriptors = server.threads(), server.tasks(), server.descriptors()

    @staticmethod
    def watch(server, memory, over):
        while True:
            memory.append(server.memory())
            if over.wait(GLANCE):
                return

    def take(self, kind, said, complaint, code):
        if code != 0:
            return self.wrong.append(f"{kind}: gatepost bench ended with {code}: {complaint.strip()}")
        (told,) = json.loads(said)["rounds"]
        decided = told["decisions"]
        self.answers += sum(decided[it] for it in ("allowed", "denied", "conditional"))
        if told["answers"] == 0:
            self.wrong.append(f"{kind}: not one answer")
        without = sum(it["count"] for it in told["refusals"]) + sum(told["failures"].values()) + told["unsent"]
        if without > UNANSWERED * (told["answers"] + without):
            what = {it: told[it] for it in ("answers", "refusals", "failures", "unsent")}
            self.wrong.append(f"{kind}: too many without an answer: {json.dumps(what)}")
        if decided["items_refused"] or decided["token_denied"]:
            self.wrong.append(f"{kind}: {json.dumps(decided)}")
        return None


def grown(spells):
    """What the last third holds more of than the one before, as sentences; the first third is for warming up."""
    third = max(len(spells) // 3, 1)
    middle, last = spells[third : 2 * third] or spells[:1], spells[-third:]

    def most(part, what):
        return max(getattr(spell, what) for spell in part)

    before, after = (statistics.median(spell.memory for spell in part) for part in (middle, last))
    found = []
    if after > before * (1 + MEMORY_PART) + MEMORY_MORE:
        found.append(f"memory grew from {before / MIB:.1f} to {after / MIB:.1f} MiB")
    for what, more in (("threads", 0), ("tasks", 0), ("descriptors", DESCRIPTORS_MORE)):
        if most(last, what) > most(middle, what) + more:
            found.append(f"{what} grew from {most(middle, what)} to {most(last, what)}")
    return found


def show(begun, spell):
    minutes = (time.monotonic() - begun) / 60
    row = (f"{minutes:.1f} min", spell.answers, f"{spell.memory / MIB:.1f} MiB", spell.threads, spell.tasks, spell.descriptors)
    print("{:>9}{:>10}{:>12}{:>9}{:>7}{:>13}".format(*row), flush=True)


def soak(server, seconds, rate):
    """All the spells; what is wrong, as sentences."""
    begun, spells, count = time.monotonic(), [], SPELLS if seconds >= SHORT else 2
    print("{:>9}{:>10}{:>12}{:>9}{:>7}{:>13}".format("after", "answers", "memory", "threads", "tasks", "descriptors"))
    for number in range(count):
        spells.append(Spell(server, number, seconds / count, rate))
        show(begun, spells[-1])
        if spells[-1].wrong:
            return spells[-1].wrong
    return grown(spells) if seconds >= SHORT else []


def length(text):
    match = re.fullmatch(r"([1-9]\d*)([smh])", text)
    if not match:
        raise argparse.ArgumentTypeError("must be a time such as 10m")
    return int(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def fail(why):
    print(f"packaging/soak.py: {why}", file=sys.stderr)
    sys.exit(1)


def main():
    told = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="packaging/soak.py", description=__doc__, formatter_class=told)
    parser.add_argument("--binary", required=True, type=pathlib.Path, help="the gatepost to try")
    parser.add_argument("--duration", type=length, default=600, help="how long it is asked; 10m unless set")
    parser.add_argument("--rate", type=float, help="questions a second, all kinds together; 2000 unless set, or 200 in a soak of seconds")
    arguments = parser.parse_args()
    rate = arguments.rate or (2000 if arguments.duration >= SHORT else 200)
    with tempfile.TemporaryDirectory(prefix="gatepost-soak-") as folder:
        server = Server(arguments.binary.resolve(), pathlib.Path(folder))
        try:
            wrong = soak(server, arguments.duration, rate)
            if (code := server.stop()) != 0:
                wrong.append(f"the server ended with {code}")
        finally:
            server.process.kill()
    if wrong:
        fail("; ".join(wrong))
    print("nothing grew" if arguments.duration >= SHORT else "too short to say whether anything grows")


if __name__ == "__main__":
    main()
