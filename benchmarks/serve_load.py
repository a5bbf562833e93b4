"""`steerable serve` under load, and how soon a slider's move shows: loopback only, bounded in count and time.

    steerable demo && python benchmarks/serve_load.py runs/demo/steerable/bundle

Indexes --rows photographs' patches into a LanceDB table, starts `steerable serve BUNDLE DB` as a process of its own,
and lets --clients (at most 100) ask /api/search and /api/steer in turns for --seconds (at most 120), each waiting for
its answer before it asks again; clients and server share the machine's cores. A search steers by two coordinates,
k = 12; a request to steer has one embedding and 8 thetas. Then, with nobody else there, Chromium moves a slider --moves
times: the time from the input event to the new neighbors in the page. Writes results/serve_load.json.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from record import cpu_name, record

from steerable import SteerableEncoder
from steerable.data import photos
from steerable.embedding import index_images

MOST_CLIENTS, LONGEST = 100, 120
# Gradio touches the panel while it waits, too: what counts is another list of neighbors
WATCH = """() => { window.took = []; let began = 0; let was = '';
  const list = () => document.querySelector('#steered .hits').innerText;
  const slider = document.querySelector('#theta-hue input[type=range]');
  slider.addEventListener('input', () => { began = performance.now(); was = list(); }, true);
  new MutationObserver(() => {
    if (began && list() !== was) { window.took.push(performance.now() - began); began = 0; }
  }).observe(document.querySelector('#steered'), { childList: true, subtree: true, characterData: true }); }"""


def requests_of(model: SteerableEncoder) -> list[tuple[str, bytes]]:
    """Name and bytes of 64 different requests, searches and steers in turns."""
    images = photos("test", size=32, n=32)
    e = model.encode(images.float_images(range(32))).tolist()
    draw = random.Random(0)
    made = []
    for row in e:
        theta = {"hue": draw.uniform(-0.1, 0.1), "zoom": draw.uniform(0, 1)}
        thetas = [{"hue": draw.uniform(-0.1, 0.1)} for _ in range(8)]
        for name, body in (
            ("search", {"embedding": row, "theta": theta, "k": 12}),
            ("steer", {"embeddings": [row], "thetas": thetas}),
        ):
            data = json.dumps(body).encode()
            head = f"POST /api/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            made.append((name, f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data))
    return made


async def client(
    port: int, asked: list[tuple[str, bytes]], until: float, took: list[tuple[str, int, float]]
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    place = random.randrange(len(asked))
    while time.perf_counter() < until:
        name, data = asked[place % len(asked)]
        place += 1
        began = time.perf_counter()
        writer.write(data)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
        )
        await reader.readexactly(length)
        took.append((name, int(head.split(b" ", 2)[1]), time.perf_counter() - began))
    writer.close()


async def load(pid: int, port: int, asked: Any, clients: int, seconds: float) -> tuple[list, list[float]]:
    """What every request took, and the server's memory in MB each second."""
    took: list[tuple[str, int, float]] = []
    memory: list[float] = []
    until = time.perf_counter() + seconds
    tasks = [asyncio.create_task(client(port, asked, until, took)) for _ in range(clients)]
    while time.perf_counter() < until:
        memory.append(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6)
        await asyncio.sleep(1)
    await asyncio.wait_for(asyncio.gather(*tasks), 60)
    return took, memory


def slider(port: int, moves: int) -> list[float]:
    """Milliseconds from a slider's input to the new neighbors in the page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(f"http://127.0.0.1:{port}/", timeout=60_000)
        page.wait_for_selector("#encoded .hit", timeout=60_000)
        page.wait_for_timeout(2000)
        page.evaluate(WATCH)
        handle = page.locator("#theta-hue input[type=range]")
        handle.focus()
        for i in range(moves):
            handle.press("ArrowRight" if i % 20 < 10 else "ArrowLeft")
            page.wait_for_timeout(700)
        took = page.evaluate("window.took")
        browser.close()
    return took[3:]  # the first ones warm up


def measure(bundle: str, args: argparse.Namespace, folder: str) -> dict[str, Any]:
    model = SteerableEncoder.from_pretrained(bundle)
    index_images(model, photos(size=32, n=args.rows), f"{folder}/db", size=32)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "steerable", "serve", bundle, f"{folder}/db", "--port", str(port)]
    with open(f"{folder}/log", "w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            for _ in range(300):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=2).read()
                    break
                except OSError:
                    time.sleep(1)
            asked = requests_of(model)
            asyncio.run(load(server.pid, port, asked, args.clients, 5))  # warms up
            took, memory = asyncio.run(load(server.pid, port, asked, args.clients, args.seconds))
            moves = slider(port, args.moves) if shutil.which("chromium") else []
        finally:
            server.terminate()
    return {"took": took, "memory": memory, "moves": moves}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--moves", type=int, default=40)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.clients, args.seconds = min(args.clients, MOST_CLIENTS), min(args.seconds, LONGEST)
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args.bundle, args, folder)
    rows, figures = [], {}
    errors = sum(status != 200 for _, status, _ in found["took"])
    for name in ("search", "steer"):
        times = [1000 * t for kind, _, t in found["took"] if kind == name]
        cut = quantiles(times, n=100)
        rate = len(times) / args.seconds
        rows.append(
            {
                "route": f"/api/{name}",
                "requests": len(times),
                "per_second": rate,
                "p50_ms": cut[49],
                "p99_ms": cut[98],
            }
        )
        figures |= {
            f"/api/{name}, p99": {"mean": cut[98], "spread": None, "unit": "ms"},
            f"/api/{name}, requests": {"mean": rate, "spread": None, "unit": "a second"},
        }
    memory = found["memory"]
    third = len(memory) // 3
    growth = median(memory[-third:]) - median(memory[:third])
    rows.append(
        {
            "route": "memory",
            "first_third_mb": median(memory[:third]),
            "last_third_mb": median(memory[-third:]),
        }
    )
    figures |= {
        "errors": {"mean": errors, "spread": None, "unit": ""},
        "memory, last third over first": {"mean": growth, "spread": None, "unit": "MB"},
    }
    if found["moves"]:
        cut = quantiles(found["moves"], n=20)
        rows.append(
            {
                "route": "slider to neighbors",
                "requests": len(found["moves"]),
                "p50_ms": cut[9],
                "p95_ms": cut[18],
            }
        )
        figures["slider to neighbors, median"] = {"mean": cut[9], "spread": None, "unit": "ms"}
        figures["slider to neighbors, p95"] = {"mean": cut[18], "spread": None, "unit": "ms"}
    path = record(
        "serve_load",
        claim=f"steerable serve, {args.rows:,} images in LanceDB, {args.clients} clients for {args.seconds:g} s on the "
        f"server's own {os.cpu_count()} cores (load average before: {busy:.1f}); a slider's move shows within 300 ms",
        command=f"python benchmarks/serve_load.py {args.bundle}",
        rows=rows,
        figures=figures,
        device=cpu_name(),
        path=args.out,
    )
    print(path.read_text())


if __name__ == "__main__":
    main()
