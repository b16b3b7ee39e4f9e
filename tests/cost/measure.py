"""What a decision costs, in instructions: the same however busy the machine is.

    python tests/cost/measure.py              compare with tests/cost/figures.json; more than 5 % above it fails
    python tests/cost/measure.py --update     write the figures anew
    python tests/cost/measure.py --binary target/debug/gatepost       figures of another build, to look at

Two parts, both under callgrind. *Rulings*: `gatepost bench engine` with different numbers of questions, so that the difference
is what the questions cost and nothing of the start. *Calls*: `gatepost serve`, asked over mutual TLS by `gatepost bench`; what
its counter and its own count of decisions say before and after gives the instructions of a decision: of its call from the
headers to the answer, and of the thread that keeps its record. What a cache does by the clock falls into it now and then, the
oftener the slower the machine is, and only ever adds: so each is counted three times, and the least counts. The binary is the
one that packaging/release has built, in the profile `rehearsal`: figures of another profile or compiler are other figures,
and tell as well whether something grew. Needs valgrind.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIGURES = ROOT / "tests/cost/figures.json"
# Reading and writing, at all three levels. More would tell little more: most of the time is the start under callgrind.
ROWS = ["account.yaml", "order.yaml"]
# How often each question is put.
FEW, MANY = 2, 14
MORE = 0.05
# Of the committed figure. What is less was not made cheaper, but is not counted: a function in COUNTED_IN has another name.
LEAST = 0.5


def binary():
    built = sorted((ROOT / "target/rehearsal").glob("*/rehearsal/gatepost"))
    if not built:
        sys.exit("target/rehearsal has no binary: run packaging/release --compile-only --profile rehearsal --target-dir target/rehearsal first")
    return built[-1]


def instructions(program, rows, count):
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", program, "bench", "engine"]
    command += ["--policies", ROOT / "policies", "--question", rows, "--count", str(count), "--output", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        sys.exit(f"gatepost bench engine ended with {done.returncode}:\n{done.stderr}")
    collected = re.search(r"Collected : (\d+)", done.stderr)
    if not collected:
        sys.exit(f"callgrind counted nothing:\n{done.stderr}")
    return int(collected[1])


# ---- Calls ----

# How a decision is asked for, and what tells `gatepost bench` so; and questions of a call. One connection, one call at a time.
CALLS = {
    "Check, known": [],
    "Check, new": ["--fresh"],
    "BatchCheck of 20, known": ["--shape", "batch:20"],
    "BatchCheck of 20, new": ["--shape", "batch:20", "--fresh"],
}
# A call from its headers to its answer, and the thread that keeps its record. What else a process does goes by the clock, and
# would count the more the slower the machine is.
COUNTED_IN = [
    "<gatepost::grpc::layers::Recorded as gatepost::grpc::server::App>::answer::{{closure}}",
    "gatepost::audit::keeper::Keeper::keep",
]
QUESTION = {
    "action": "Order.read",
    "resource": {
        "type": "Order",
        "id": "ord-1",
        "attributes": {
            "tenant": {"type": "Tenant", "id": "acme"},
            "customer": {"type": "User", "id": "alice"},
            "status": "paid",
            "total": 4200,
        },
    },
    "fields": {"all": True},
}
# Until everything is warm, and while it is counted: seconds, and decisions at least.
WARM, COUNTED, ENOUGH = 2, 4, 200
# Rounds until there are so many.
ROUNDS = 30
# So often each is counted.
TIMES = 3
# How long a start or an end may take, under callgrind.
PATIENCE = 300


class Server:
    """`gatepost serve` under callgrind, in a world made for it."""

    def __init__(self, program, folder):
        self.program, self.folder = program, folder
        subprocess.run([program, "bench", "world", "--folder", folder], check=True, stdout=subprocess.DEVNULL)
        (folder / "question.json").write_text(json.dumps(QUESTION))
        settings = json.loads((folder / "gatepost.yaml").read_text())
        # It is a hundred times slower than it is: nothing is late for that.
        settings.setdefault("limits", {}).update({"overload_target": "1m", "max_deadline": "1m"})
        settings["audit"]["mode"] = "async"
        # What is known stays known: a ruling that ended while known questions are counted would be counted with them.
        settings["cache"] = {"decision_ttl": "10m"}
        (folder / "gatepost.yaml").write_text(json.dumps(settings))
        self.log = folder / "log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GATEPOST_")}
        command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", f"--vgdb-prefix={folder}/vgdb"]
        command += [f"--toggle-collect={name}" for name in COUNTED_IN]
        command += [program, "serve", "--config", folder / "gatepost.yaml"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        self.address, self.operators = self.until_it_serves()

    def until_it_serves(self):
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            for line in self.log.read_text().splitlines():
                told = json.loads(line) if line.startswith("{") else {}
                told = told.get("fields", told)
                if told.get("message") == "serving":
                    return told["address"], told["ops_address"]
            time.sleep(0.1)
        self.process.kill()
        sys.exit(f"the server does not serve:\n{self.log.read_text()[-4000:]}")

    def ask(self, arguments, seconds):
        files = {"ca": "ca.pem", "certificate": "bench.pem", "key": "bench.key", "token": "alice.token"}
        named = [word for flag, name in files.items() for word in (f"--{flag}", self.folder / name)]
        command = [self.program, "bench", "--address", self.address, *named, "--connections", "1", "--in-flight", "1"]
        command += ["--question", self.folder / "question.json"]
        command += ["--warmup", "0s", "--duration", f"{seconds}s", "--deadline", "1m", "--output", "json", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode:
            sys.exit(f"gatepost bench ended with {done.returncode}:\n{done.stderr}")

    def decisions(self):
        """So many were answered, by its own count."""
        text = urllib.request.urlopen(f"http://{self.operators}/metrics", timeout=PATIENCE).read().decode()
        counted = re.findall(r"^gatepost_decisions_total\{.*\} ([0-9.e+]+)$", text, re.M)
        return round(sum(float(number) for number in counted))

    def instructions(self):
        command = ["callgrind_control", f"--vgdb-prefix={self.folder}/vgdb", "-e", str(self.process.pid)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        threads = re.findall(r"^\s+Th\s*\d+\s+([\d,]+)", done.stdout, re.M)
        if not threads:
            sys.exit(f"callgrind_control says nothing:\n{done.stdout}{done.stderr}")
        return sum(int(number.replace(",", "")) for number in threads)

    def cost(self, arguments):
        """Instructions of a decision: the least of several counts."""
        self.ask(arguments, WARM)
        return min(self.count(arguments) for _ in range(TIMES))

    def count(self, arguments):
        before, begun = self.instructions(), self.decisions()
        ended = begun
        for _ in range(ROUNDS):
            self.ask(arguments, COUNTED)
            ended = self.decisions()
            if ended - begun >= ENOUGH:
                break
        else:
            sys.exit(f"{' '.join(arguments) or 'checks'}: {ended - begun} decisions in {ROUNDS} rounds; does it count them?")
        return round((self.instructions() - before) / (ended - begun))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()


def calls(program):
    with tempfile.TemporaryDirectory(prefix="gatepost-cost-") as folder:
        server = Server(program, pathlib.Path(folder))
        try:
            return {name: server.cost(arguments) for name, arguments in CALLS.items()}
        finally:
            server.stop()


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--update", action="store_true", help="write the figures anew")
    options.add_argument("--binary", type=pathlib.Path, help="another build of gatepost, to look at its figures")
    options = options.parse_args()
    program, found = options.binary or binary(), {}
    for name in ROWS:
        rows = ROOT / "policies/tests" / name
        questions = rows.read_text().count("- name:")
        more = instructions(program, rows, MANY * questions) - instructions(program, rows, FEW * questions)
        found[f"rulings, {name}"] = round(more / ((MANY - FEW) * questions))
    found |= calls(program)
    known = {} if options.update else json.loads(FIGURES.read_text())
    print(f"{'':26}{'instructions':>14}{'committed':>12}")
    grown = []
    for name, now in found.items():
        before = known.get(name)
        change = f"{now / before - 1:+.1%}" if before else ""
        print(f"{name:26}{now:14,}{before or '-':>12}{change:>10}")
        if not options.update and (before is None or now > before * (1 + MORE)):
            grown.append(name)
        if before and now < before * LEAST:
            sys.exit(f"{name}: far below the committed figure; is something not counted any more? If all is: --update")
    if options.update:
        FIGURES.write_text(json.dumps(found, indent=2) + "\n")
    elif grown:
        sys.exit(f"{', '.join(grown)}: more than {MORE:.0%} above the committed figure; if it is worth it: --update")
    elif stale := sorted(known.keys() - found.keys()):
        sys.exit(f"{', '.join(stale)}: a figure, and no rows; --update")


if __name__ == "__main__":
    main()
