"""Flame graphs of the server while it answers: where the time of a decision goes.

Used by `python3 benches/goals.py --flame FOLDER`, which writes a picture (`known.svg`) and its samples (`known.folded`, one stack
a line) for each kind of call. Needs `perf` and the right to use it. Stacks come from the debug information, without inlined
functions: telling those takes perf minutes.
"""

import collections
import html
import os
import pathlib
import signal
import subprocess
import tempfile

# Name of the picture, and the row of the echo bench that is asked meanwhile.
PICTURES = {
    "known": "Check, known, async",
    "new": "Check, new, 1000 policies",
    "batch": "BatchCheck of 100, known, async",
    "stream": "CheckStream, known, async",
}
SECONDS = 5
WIDTH, HEIGHT, LETTER = 1400, 17, 6.6
# Narrower ones can't be seen.
LEAST = 1.5
# Whose code it is, by what its name holds: the first that fits.
OWNERS = [
    ("Gatepost", "#e8743b", ["gatepost::"]),
    ("Cedar", "#f2b447", ["cedar_policy"]),
    ("TLS and hashes", "#6aa84f", ["rustls", "aws_lc", "aes", "gcm", "sha256", "sha512", "blake3"]),
    ("HTTP/2 and gRPC", "#8e7cc3", ["h2::", "hyper", "tonic", "tower", "http::", "prost"]),
    ("runtime", "#c27ba0", ["tokio", "futures", "mio::"]),
    ("memory", "#76a5af", ["mi_", "mem", "alloc::", "__rust_alloc"]),
]
KERNEL, OTHER = ("kernel", "#6fa8dc"), ("other", "#cccccc")


class Trouble(Exception):
    """There is no picture; says why."""


def draw_all(executable, folder, tell):
    """Draws every picture into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, row in PICTURES.items():
        tell(f"  flame graph of {row}")
        stacks = sample(executable, row)
        lines = [f"{';'.join(symbol for symbol, _ in stack)} {count}" for stack, count in sorted(stacks.items())]
        (folder / f"{name}.folded").write_text("\n".join(lines) + "\n")
        (folder / f"{name}.svg").write_text(svg(row, stacks))


# ---- Samples ----


def sample(executable, row):
    """How often each stack was seen, the outermost frame first, while the server was asked this."""
    command = [executable, "--only", row, "--policies", "1000", "--rounds", "1", "--seconds", str(SECONDS + 3)]
    load = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        # Everything is started and warm once the first round begins.
        if not any(line.startswith("round 1") for line in load.stderr):
            raise Trouble(f"nothing was asked of {row!r}")
        with tempfile.TemporaryDirectory() as aside:
            return record(server_of(load.pid), pathlib.Path(aside) / "perf.data")
    finally:
        os.killpg(load.pid, signal.SIGKILL)
        load.wait()


def server_of(load):
    """The process of the Gatepost that this load has started."""
    for task in pathlib.Path(f"/proc/{load}/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"\0serve\0" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes():
                return child
    raise Trouble("the load has started no server")


def record(process, data):
    perf(["record", "-q", "-F", "499", "--call-graph", "dwarf,32768", "-p", process, "-o", data, "sleep", str(SECONDS)])
    return fold(perf(["script", "--no-inline", "-i", data, "-F", "comm,ip,sym"]))


def perf(command):
    try:
        done = subprocess.run(["perf", *command], capture_output=True, text=True, errors="replace", timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Trouble(f"perf {command[0]}: {error}") from error
    if done.returncode:
        raise Trouble(f"perf {command[0]}: {done.stderr.strip()}")
    return done.stdout


def fold(script):
    """Counts stacks: of each sample a line with the thread's name, and one a frame with address and symbol, the innermost first."""
    stacks = collections.Counter()
    for sampled in script.split("\n\n"):
        thread, *frames = sampled.strip("\n").split("\n")
        found = [(thread.strip(), False)]
        for frame in reversed(frames):
            address, _, symbol = frame.strip().partition(" ")
            if symbol and symbol != "[unknown]":
                found.append((symbol, address.startswith("ffffffff")))
        if len(found) > 1:
            stacks[tuple(found)] += 1
    if not stacks:
        raise Trouble("perf has seen nothing")
    return stacks


# ---- The picture ----


class Frame:
    """A function called by the one below it, and how many samples were in it."""

    def __init__(self):
        self.samples, self.callees = 0, {}


def tree(stacks):
    root = Frame()
    for stack, count in stacks.items():
        frame = root
        frame.samples += count
        for function in stack:
            frame = frame.callees.setdefault(function, Frame())
            frame.samples += count
    return root


def svg(title, stacks):
    root = tree(stacks)
    boxes, scale = [], WIDTH / root.samples

    def place(frame, left, depth):
        for (symbol, in_kernel), callee in sorted(frame.callees.items()):
            if callee.samples * scale >= LEAST:
                boxes.append((left, depth, callee.samples, symbol, in_kernel))
                place(callee, left, depth + 1)
            left += callee.samples

    place(root, 0, 0)
    top = max(depth for _, depth, *_ in boxes) + 1
    head = 2 * HEIGHT + 10
    parts = [box(*one, scale, root.samples, lambda depth: head + (top - 1 - depth) * HEIGHT) for one in boxes]
    legend = "".join(
        f'<rect x="{10 + at * 160}" y="{HEIGHT + 8}" width="12" height="12" fill="{color}"/>'
        f'<text x="{26 + at * 160}" y="{HEIGHT + 18}">{owner}</text>'
        for at, (owner, color) in enumerate([(owner, color) for owner, color, _ in OWNERS] + [KERNEL, OTHER])
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {head + top * HEIGHT}" '
        'font-family="monospace" font-size="11">'
        '<rect width="100%" height="100%" fill="white"/>'
        f'<text x="10" y="{HEIGHT}">{html.escape(title)}: {root.samples} samples of the server, callers below</text>'
        f"{legend}{''.join(parts)}</svg>\n"
    )


def box(left, depth, samples, symbol, in_kernel, scale, all_samples, height_of):
    x, width, y = left * scale, samples * scale, height_of(depth)
    told = html.escape(f"{symbol}: {samples / all_samples:.1%}")
    letters = int((width - 4) / LETTER)
    shown = f'<text x="{x + 2:.1f}" y="{y + 12}">{html.escape(label(symbol)[:letters])}</text>' if letters > 3 else ""
    return (
        f'<g><title>{told}</title><rect x="{x:.1f}" y="{y}" width="{max(width - 0.4, 0.3):.1f}" height="{HEIGHT - 1}" '
        f'fill="{KERNEL[1] if in_kernel else color_of(symbol)}"/>{shown}</g>'
    )


def color_of(symbol):
    name = short(symbol)
    for _, color, parts in OWNERS:
        if any(part in name for part in parts):
            return color
    return OTHER[1]


def label(symbol):
    """The function, and what it belongs to: paths are long, and boxes narrow."""
    return "::".join(short(symbol).split("::")[-2:])


def short(symbol):
    """Without what it is generic over: `<h2::codec::Codec<T,B> as Stream>::poll_next` is `h2::codec::Codec::poll_next`."""
    name = symbol.removeprefix("<").replace("::{{closure}}", "")
    before, between, after = name.partition(" as ")
    if between:
        name = before + "::" + after.rpartition(">::")[2]
    kept, depth = [], 0
    for letter in name:
        depth += letter == "<"
        if not depth:
            kept.append(letter)
        depth -= letter == ">" and depth > 0
    return "".join(kept)
