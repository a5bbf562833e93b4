"""What steering adds to a search, and what searches cost, in tables of synthetic vectors.

    python benchmarks/search_cost.py                     # 10,000 and 1,000,000 rows
    python benchmarks/search_cost.py --rows 10000

The map is a basis map of the simclr chain (k = 9). Steering alone is timed with two coordinates set (hue and zoom, as
a user would) and with all nine, by the clock and in processor time (all threads; what the machine does besides hardly
enters); its time does not depend on the table. Queries against tables, all nine set, alternate with unsteered ones,
after a warm-up. Medians, and the least. Vectors are clustered normal draws in float32: 1,280 wide up to 100,000 rows,
128 wide above (a million of 1,280 would be 5 GB). Tables: in memory (exact), LanceDB exact, and LanceDB with IVF_PQ
where there are --ann-from rows, its recall@10 beside. Writes results/search_cost.json.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from record import cpu_name, record

from steerable.model import steering_for
from steerable.retrieval import Index
from steerable.transforms import Chain

WIDTHS = (128, 384, 768, 1280)
CLUSTERS = 1000
CHUNK = 100_000


def milliseconds(*calls: Callable[[int], Any], repeats: int) -> list[dict[str, float]]:
    """Median and least by the clock, and least processor time, of each call, in turns; calls get the turn's number."""
    took: list[list[tuple[float, float]]] = [[] for _ in calls]
    for turn in range(repeats + 3):
        for call, times in zip(calls, took, strict=True):
            began = time.perf_counter(), time.process_time()
            call(turn)
            times.append((1e3 * (time.perf_counter() - began[0]), 1e3 * (time.process_time() - began[1])))
    out = []
    for times in took:  # the first three warm up
        clock, cpu = zip(*times[3:], strict=True)
        out.append({"median": median(clock), "least": min(clock), "cpu": min(cpu)})
    return out


def vectors(n: int, d: int, seed: int) -> torch.Tensor:
    """Clustered: what an approximate index is made for, and what embeddings of images are like."""
    centers = torch.randn(CLUSTERS, d, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    place = torch.randint(0, CLUSTERS, (n,), generator=generator)
    return centers[place] + 0.7 * torch.randn(n, d, generator=generator)


def steerer(d: int, *, coordinates: str) -> tuple[Any, torch.Tensor]:
    """A basis map with weights, and 64 thetas."""
    chain = Chain.preset("simclr")
    steering = steering_for(chain, d).requires_grad_(False)
    for weight in steering.parameters():
        weight.normal_(std=0.01)
    thetas = chain.sample(64, generator=torch.Generator().manual_seed(1))
    if coordinates == "hue and zoom":
        thetas *= torch.tensor([param.name in ("hue", "zoom") for param in chain.params])
    return steering, thetas


def steering_rows(repeats: int) -> list[dict[str, Any]]:
    rows = []
    for d in WIDTHS:
        for coordinates in ("hue and zoom", "all"):
            (steering, thetas), e = steerer(d, coordinates=coordinates), torch.randn(1, d)
            (cost,) = milliseconds(lambda i, s=steering, t=thetas, e=e: s(e, t[i % 64]), repeats=repeats)
            row = {"table": "steering alone", "d": d, "coordinates": coordinates}
            rows.append(row | {f"steering ms, {name}": value for name, value in cost.items()})
            print(rows[-1], flush=True)
    return rows


def table_row(name: str, index: Index, d: int, repeats: int, **more: Any) -> dict[str, Any]:
    """Cost of a query, unsteered and steered."""
    (steering, thetas), queries = steerer(d, coordinates="all"), vectors(64, d, 7)
    plain, steered = milliseconds(
        lambda i: index.search(queries[i % 64], 12),
        lambda i: index.search(steering(queries[i % 64], thetas[i % 64]), 12),
        repeats=repeats,
    )
    n = len(index)
    row = {"table": name, "rows": n, "d": d, "coordinates": "all"}
    row |= {f"query ms, {key}": value for key, value in plain.items()}
    row |= {f"steered query ms, {key}": value for key, value in steered.items()} | more
    print(
        {key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()},
        flush=True,
    )
    return row


def filled(index: Index, n: int, d: int) -> float:
    """Seconds for n rows."""
    began = time.perf_counter()
    for start in range(0, n, CHUNK):
        size = min(CHUNK, n - start)
        index.add(vectors(size, d, start + 11), id=[str(i) for i in range(start, start + size)])
    return time.perf_counter() - began


def tables(n: int, repeats: int, ann_from: int) -> list[dict[str, Any]]:
    d = 1280 if n <= 100_000 else 128
    index = Index.open("memory")
    filled(index, n, d)
    rows = [table_row("memory", index, d, repeats)]
    del index
    if find_spec("lancedb") is None:
        return rows
    with tempfile.TemporaryDirectory() as folder:
        index = Index.open(Path(folder) / "db")
        added = filled(index, n, d)
        index.compact(ann_from=n + 1)
        rows.append(table_row("lancedb exact", index, d, repeats, add_s=added))
        if n >= ann_from:
            began = time.perf_counter()
            recall = index.compact(ann_from=ann_from)
            build = time.perf_counter() - began
            rows.append(table_row("lancedb IVF_PQ", index, d, repeats, build_s=build, recall_at_10=recall))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--ann-from", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = steering_rows(args.repeats)
    path = write(rows, args)
    for n in args.rows:
        rows += tables(n, args.repeats, args.ann_from)
        path = write(rows, args)
    print(path.read_text())


def write(rows: list[dict[str, Any]], args: argparse.Namespace) -> Path:
    done = sorted({row["rows"] for row in rows if "rows" in row})
    costs = {
        f"steering {row['coordinates']}, d = {row['d']}, {name}": row[f"steering ms, {name}"]
        for row in rows if row["table"] == "steering alone" and row["d"] == WIDTHS[-1] for name in ("median", "cpu")
    }  # fmt: skip
    return record(
        "search_cost",
        claim="steering adds at most 5 ms to a query at d <= 1280, whatever the size of the table",
        command=f"python benchmarks/search_cost.py --threads {args.threads} --rows "
        + " ".join(map(str, done)),
        rows=rows,
        figures={name: {"mean": cost, "spread": None, "unit": "ms"} for name, cost in costs.items()},
        device=cpu_name(),
        path=args.out,
    )


if __name__ == "__main__":
    main()
