"""What a ruling costs, in instructions: the same however busy the machine is.

    python tests/cost/measure.py              compare with tests/cost/figures.json; more than 5 % above it fails
    python tests/cost/measure.py --update     write the figures anew

Runs `gatepost bench engine` under callgrind twice, with different numbers of questions, so that the difference is what the
questions cost and nothing of the start. The binary is the one that tests/release/test.py has built, in the profile
`rehearsal`: figures of another profile or compiler are other figures, and tell as well whether something grew. Needs valgrind.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIGURES = ROOT / "tests/cost/figures.json"
# Reading and writing, at all three levels. More would tell little more: most of the time is the start under callgrind.
ROWS = ["account.yaml", "order.yaml"]
# How often each question is put.
FEW, MANY = 2, 14
MORE = 0.05


def binary():
    built = sorted((ROOT / "target/rehearsal").glob("*/rehearsal/gatepost"))
    if not built:
        sys.exit("target/rehearsal has no binary: run tests/release/test.py first")
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


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--update", action="store_true", help="write the figures anew")
    options = options.parse_args()
    program, found = binary(), {}
    for name in ROWS:
        rows = ROOT / "policies/tests" / name
        questions = rows.read_text().count("- name:")
        more = instructions(program, rows, MANY * questions) - instructions(program, rows, FEW * questions)
        found[name] = round(more / ((MANY - FEW) * questions))
    known = {} if options.update else json.loads(FIGURES.read_text())
    print(f"{'rows of':24}{'instructions a question':>26}{'committed':>12}{'':>10}")
    grown = []
    for name, now in found.items():
        before = known.get(name)
        change = f"{now / before - 1:+.1%}" if before else ""
        print(f"{name:24}{now:26,}{before or '-':>12}{change:>10}")
        if not options.update and (before is None or now > before * (1 + MORE)):
            grown.append(name)
    if options.update:
        FIGURES.write_text(json.dumps(found, indent=2) + "\n")
    elif grown:
        sys.exit(f"{', '.join(grown)}: more than {MORE:.0%} above the committed figure; if it is worth it: --update")
    elif stale := sorted(known.keys() - found.keys()):
        sys.exit(f"{', '.join(stale)}: a figure, and no rows; --update")


if __name__ == "__main__":
    main()
