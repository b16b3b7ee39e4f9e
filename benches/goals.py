"""The goals of speed in one table: what each allows, what was measured, and whether it is reached.

    python3 benches/goals.py                          three runs, median and worst; about six minutes, and a release build
    python3 benches/goals.py --runs 1 --only start    the rows whose names hold "start", once
    python3 benches/goals.py --markdown --json goals.json
    python3 benches/goals.py --flame flames           and draws where the time of four kinds of call goes, with perf

Builds the benches and the server in release, starts everything itself on loopback, and needs nothing but cargo. Figures are
ratios where they can be, both sides measured in the same run; a machine that does other work still makes them worse, and
those of start and memory most of all. What each row is stands in docs/performance.md. Progress goes to standard error.

A row is reached when its worst run is. Exit codes: 0 everything was measured, reached or not; 1 something could not be
measured, and the rows that need it say so; 2 the command line is wrong.
"""

import argparse
import json
import os
import pathlib
import platform
import signal
import statistics
import subprocess
import sys
import time

import flame

ROOT = pathlib.Path(__file__).resolve().parents[1]
# A part that takes longer than this hangs.
PATIENCE = 900
SIZES = [10, 100, 1000, 10_000, 100_000]
MIB = 1024 * 1024


class Trouble(Exception):
    """Something could not be measured; says what."""


# ---- The parts: each runs one bench and gives what it found. ----


def echo(run, wanted, in_flight):
    """The rows of benches/echo.rs by name, and what belongs to none."""
    command = ["--rounds", str(run.rounds), "--seconds", str(run.seconds), "--in-flight", str(in_flight)]
    rows = sorted({row for goal in wanted for row in goal.rows})
    for count in (1000, 100_000):
        if any(row.endswith(f" {count} policies") for row in rows):
            command += ["--policies", str(count)]
    if "Cerbos" in rows:
        command += ["--cerbos", str(run.cerbos)]
    for row in rows:
        command += ["--only", row]
    found = run.bench("echo", command)
    return {row["name"]: row for row in found["rows"]} | {"fdatasync": found["fdatasync_4k_p50_us"]}


def known(run, wanted):
    return echo(run, wanted, 64)


def durable(run, wanted):
    return echo(run, wanted, 256)


def unhurried(run, wanted):
    """One call at a time on each connection: nobody waits for a core, so what is left is the disk."""
    return echo(run, wanted, 4)


def new(run, wanted):
    return echo(run, wanted, 64)


def engine(run, wanted):
    sizes = [option for size in SIZES for option in ("--policies", str(size))]
    return {bundle["policies"]: bundle for bundle in run.bench("engine", sizes)}


def token(run, wanted):
    return {row["algorithm"]: row for row in run.bench("token", [])}


def footprint(run, wanted):
    return run.bench("footprint", [])


# ---- The goals: a row of the table each. ----


class Goal:
    """One figure and its limit. `figure` takes what `part` has found; `rows` are the rows of the echo bench that it needs."""

    def __init__(self, name, unit, limit, part, figure, rows=(), least=False, below=False):
        self.name, self.unit, self.limit, self.part, self.figure, self.rows = name, unit, limit, part, figure, rows
        # The figure is to be at least the limit, rather than at most; or below it.
        self.least, self.below = least, below

    def worst(self, figures):
        return min(figures) if self.least else max(figures)

    def reached_by(self, figure):
        if self.least:
            return figure >= self.limit
        return figure < self.limit if self.below else figure <= self.limit


def cpu(row, to):
    """A goal's figure: the server's CPU per decision in one row of the echo bench to that in another."""
    return lambda found: found[row]["server_cpu_us_per_decision"] / found[to]["server_cpu_us_per_decision"]


def throughput(row, to):
    return lambda found: found[row]["decisions_per_second"] / found[to]["decisions_per_second"]


def added_to_sync(found):
    added = found["Check, known, durable"]["p50_us"] - found["Check, known, async"]["p50_us"]
    return added / found["fdatasync"]


def sight(algorithm):
    return lambda found: found[algorithm]["gatepost_us"] / found[algorithm]["bare_us"]


def masks(found):
    """Rulings with a mask of 20 fields, microseconds, over bundles of all sizes."""
    return [found[size]["mask_20_ns"] / 1000 for size in SIZES]


TUNED, STOCK = "tuned echo", "stock echo"
ASYNC, DURABLE = "Check, known, async", "Check, known, durable"
FEW, MANY = "Check, new, 1000 policies", "Check, new, 100000 policies"
FEW_ECHO = "tuned echo, 1000 policies"
BATCH, STREAM = "BatchCheck of 100, known, async", "CheckStream, known, async"
CERBOS = "Cerbos"

GOALS = [
    Goal("known Check, async", "CPU : tuned echo", 1.45, known, cpu(ASYNC, TUNED), [ASYNC, TUNED]),
    Goal("known Check, async", "CPU : stock echo", 1, known, cpu(ASYNC, STOCK), [ASYNC, STOCK], below=True),
    Goal("known Check, durable, 256 in flight", "CPU : tuned echo", 2.3, durable, cpu(DURABLE, TUNED), [DURABLE, TUNED]),
    Goal(
        "known Check, durable, 256 in flight", "throughput : async", 0.6, durable, throughput(DURABLE, ASYNC),
        [DURABLE, ASYNC], least=True,
    ),
    Goal(
        "known Check, durable, 256 in flight", "p50 over async : fdatasync", 2.5, durable, added_to_sync, [DURABLE, ASYNC]
    ),
    Goal(
        "known Check, durable, 4 in flight", "p50 over async : fdatasync", 2.5, unhurried, added_to_sync, [DURABLE, ASYNC]
    ),
    Goal("new Check, 1 000 policies", "CPU : tuned echo", 2, new, cpu(FEW, FEW_ECHO), [FEW, FEW_ECHO]),
    Goal("new Check, 100 000 policies", "CPU : with 1 000", 1.15, new, cpu(MANY, FEW), [MANY, FEW]),
    Goal(
        "mask of 100 fields, 1 000 policies", "µs over no mask", 3, engine,
        lambda found: (found[1000]["mask_100_ns"] - found[1000]["plain_of_100_ns"]) / 1000,
    ),
    Goal(
        "mask of 100 fields, 1 000 policies", ": mask of 5", 1.5, engine,
        lambda found: found[1000]["mask_100_ns"] / found[1000]["mask_5_ns"],
    ),
    Goal("first sight of a token, ES256", ": verification alone", 1.15, token, sight("ES256")),
    Goal("first sight of a token, RS256", ": verification alone", 1.15, token, sight("RS256")),
    Goal("BatchCheck of 100, async", "CPU : tuned echo", 0.4, known, cpu(BATCH, TUNED), [BATCH, TUNED]),
    Goal("CheckStream, window 64, async", "CPU : tuned echo", 0.55, known, cpu(STREAM, TUNED), [STREAM, TUNED]),
    Goal(
        "ruling with its mask of 20 fields", "µs, the most of 10 to 100 000 policies", 5, engine,
        lambda found: max(masks(found)), below=True,
    ),
    Goal(
        "ruling with its mask of 20 fields", "the most : the least", 1.5, engine,
        lambda found: max(masks(found)) / min(masks(found)),
    ),
    Goal("memory, idle, 100 policies", "MiB", 40, footprint, lambda found: found["idle_bytes"] / MIB),
    Goal("memory, 100 000 rulings, 10 000 policies", "MiB", 128, footprint, lambda found: found["full_bytes"] / MIB),
    Goal("start to ready, 100 policies", "s", 0.3, footprint, lambda found: found["start_few_s"]),
    Goal("start to ready, 10 000 policies", "s", 3, footprint, lambda found: found["start_many_s"]),
    Goal("start after a kill, 256 MiB of records", "s", 3, footprint, lambda found: found["start_killed_s"]),
    Goal("against Cerbos 0.55", "its CPU : known Check", 40, known, cpu(CERBOS, ASYNC), [CERBOS, ASYNC], least=True),
]


# ---- Building and running. ----


def build(profile):
    """Builds everything; gives the benches' executables by name. The server is built with them, as they start it."""
    tell(f"building, profile {profile}")
    benches = [option for name in ("echo", "engine", "footprint", "token") for option in ("--bench", name)]
    command = ["cargo", "bench", "--no-run", "--profile", profile, "--message-format", "json-render-diagnostics", *benches]
    try:
        built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    except FileNotFoundError:
        sys.exit("goals: cargo is not there; it builds what is measured")
    if built.returncode:
        sys.exit(f"goals: cargo ended with {built.returncode}; what it said stands above")
    messages = [json.loads(line) for line in built.stdout.splitlines() if line.startswith("{")]
    artifacts = [one for one in messages if one["reason"] == "compiler-artifact" and one["target"]["kind"] == ["bench"]]
    return {one["target"]["name"]: one["executable"] for one in artifacts}


def cerbos(given):
    """The program to compare with, where one is given."""
    if given != "install":
        return given and pathlib.Path(given).resolve()
    folder = ROOT / "target/cerbos"
    program = folder / "node_modules/@cerbos/cerbos-linux-x64/cerbos-linux-x64"
    if not program.exists():
        tell("installing Cerbos")
        command = ["npm", "install", "--silent", "--prefix", folder, "@cerbos/cerbos-linux-x64@0.55.0"]
        try:
            subprocess.run(command, stdout=sys.stderr, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            sys.exit(f"goals: Cerbos could not be installed: {error}")
    return program


class Run:
    """What all parts of a run share."""

    def __init__(self, executables, options):
        self.executables, self.cerbos = executables, cerbos(options.cerbos)
        self.rounds, self.seconds = options.rounds, options.seconds

    def bench(self, name, options):
        """What the bench prints as JSON. It and whatever it has started are gone afterwards."""
        command = [self.executables[name], "--json", *options]
        # A session of its own, so that its servers can be ended with it.
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
        try:
            printed, _ = child.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise Trouble(f"the bench {name} took more than {PATIENCE} s") from None
        finally:
            end(child)
        if child.returncode:
            raise Trouble(f"the bench {name} ended with {child.returncode}; what it said stands above")
        return json.loads(printed)


def end(child):
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()


def measure(goals, run):
    """Each goal's figure by its place in `goals`, or `None`; and what every part has found."""
    figures, raw = [None] * len(goals), {}
    for part in dict.fromkeys(goal.part for goal in goals):
        wanted = [goal for goal in goals if goal.part is part]
        tell(f"  {part.__name__}")
        started = time.monotonic()
        try:
            found = part(run, wanted)
        except Trouble as trouble:
            tell(f"  {part.__name__}: {trouble}")
            continue
        tell(f"  {part.__name__}: {time.monotonic() - started:.0f} s")
        raw[part.__name__] = found
        for at, goal in enumerate(goals):
            if goal.part is part:
                try:
                    figures[at] = goal.figure(found)
                except (KeyError, TypeError, ZeroDivisionError):
                    # A figure of nothing is null in JSON.
                    tell(f"  {goal.name}: nothing was counted")
    return figures, raw


# ---- Telling. ----


def verdict(goal, figures):
    if goal.reached_by(goal.worst(figures)):
        return "reached"
    return "median only" if goal.reached_by(statistics.median(figures)) else "not reached"


def lines(goals, runs, cerbos):
    """The table as lists of texts, the heading first."""
    numbers = [f"run {number}" for number in range(1, len(runs) + 1)]
    table = [["goal", "figure", "limit", *numbers, "median", "worst", ""]]
    for at, goal in enumerate(goals):
        limit = f"{'≥' if goal.least else '<' if goal.below else '≤'} {goal.limit:g}"
        figures = [run[at] for run in runs]
        shown = ["-" if figure is None else f"{figure:.2f}" for figure in figures]
        if CERBOS in goal.rows and not cerbos:
            told = ["-", "-", "not measured: give --cerbos"]
        elif None in figures:
            told = ["-", "-", "failed"]
        else:
            told = [f"{statistics.median(figures):.2f}", f"{goal.worst(figures):.2f}", verdict(goal, figures)]
        table.append([goal.name, goal.unit, limit, *shown, *told])
    return table


def as_text(table):
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    # Words to the left, numbers to the right.
    pad = lambda at, text: text.ljust(widths[at]) if at in (0, 1, len(widths) - 1) else text.rjust(widths[at])
    return "\n".join("  ".join(pad(at, text) for at, text in enumerate(line)).rstrip() for line in table)


def as_markdown(table):
    rule = ["---"] * len(table[0])
    return "\n".join(f"| {' | '.join(line)} |" for line in [table[0], rule, *table[1:]])


def tell(text):
    print(text, file=sys.stderr, flush=True)


def read_options():
    about, _, more = __doc__.partition("\n\n")
    options = argparse.ArgumentParser(
        description=about, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--runs", type=int, default=3, help="how often everything is measured, from the start on (3)")
    options.add_argument("--only", metavar="NAME", action="append", help="only rows that hold this; may be repeated")
    options.add_argument("--rounds", type=int, default=3, help="rounds of each call measured in a run; medians count (3)")
    options.add_argument("--seconds", type=float, default=1.0, help="seconds of each round (1)")
    options.add_argument("--cerbos", metavar="PATH", help="the program of Cerbos 0.55, to compare with; `install` gets it")
    options.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options.add_argument("--json", metavar="FILE", type=pathlib.Path, help="write all that was measured there as well")
    options.add_argument("--flame", metavar="FOLDER", type=pathlib.Path, help="draw flame graphs into it at the end")
    options.add_argument("--profile", default="release", help="cargo's profile; figures of others are no figures (release)")
    found = options.parse_args()
    if found.runs < 1 or found.rounds < 1 or found.seconds <= 0:
        options.error("--runs, --rounds and --seconds have to be more than nothing")
    if found.cerbos not in (None, "install") and not os.access(found.cerbos, os.X_OK):
        options.error(f"--cerbos: {found.cerbos} is no program")
    if not chosen(found.only):
        names = "\n  ".join(dict.fromkeys(goal.name for goal in GOALS))
        options.error(f"no row holds {' or '.join(map(repr, found.only))}; there are:\n  {names}")
    return found


def chosen(only):
    return [goal for goal in GOALS if not only or any(text.lower() in goal.name.lower() for text in only)]


def main():
    options = read_options()
    goals = chosen(options.only)
    measurable = [goal for goal in goals if options.cerbos or CERBOS not in goal.rows]
    run = Run(build(options.profile), options)
    runs, raw = [], []
    for number in range(1, options.runs + 1):
        tell(f"run {number} of {options.runs}")
        figures, found = measure(measurable, run)
        by_goal = dict(zip(measurable, figures))
        runs.append([by_goal.get(goal) for goal in goals])
        raw.append(found)
    table = lines(goals, runs, options.cerbos)
    print(as_markdown(table) if options.markdown else as_text(table))
    print(f"\n{options.runs} runs; calls: {options.rounds} rounds of {options.seconds:g} s in each; profile {options.profile}, {os.cpu_count()} cores")
    if options.json:
        machine = {"cores": os.cpu_count(), "system": platform.platform(), "profile": options.profile}
        rows = [dict(zip(table[0][:-1] + ["verdict"], line)) for line in table[1:]]
        options.json.write_text(json.dumps({"machine": machine, "goals": rows, "runs": raw}, indent=2) + "\n")
    failed = any(by is None for one in runs for by, goal in zip(one, goals) if goal in measurable)
    if options.flame:
        try:
            flame.draw_all(run.executables["echo"], options.flame, tell)
        except flame.Trouble as trouble:
            tell(f"goals: no flame graphs: {trouble}")
            failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        tell("goals: interrupted")
        sys.exit(128 + signal.SIGINT)
