"""Writes docs/results.md, and the results table of the README, from results/*.json.

    python benchmarks/results_table.py [--check]

``--check`` writes nothing and fails where either page differs from what the JSON says.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
START, END = "<!-- results: start (make docs writes what follows) -->", "<!-- results: end -->"
# What the README shows: result -> what it is about, and the label of each figure that it takes.
EXCERPT: dict[str, tuple[str, dict[str, str]]] = {
    "demo": (
        "The demo: a control and a steerable encoder on bundled photographs, 2 CPU cores",
        {
            "relative error, control with a ridge map": "relative error, control",
            "relative error, steerable": "relative error, steerable",
            "1,000 views steered, times faster than encoded": "1,000 views steered, times faster than encoded",
            "in all": "whole demo",
        },
    ),
    "table_small_cifar10_supervised": (
        "CIFAR-10, small encoders, supervised: steerable over the better of two controls, paired",
        {
            "relative error": "relative error, steerable: gain",
            "transfer, linear probe, mean of 8 sets": "transfer, linear, steerable: gain",
            "accuracy on corrupted images": "corrupted accuracy, steerable: gain",
        },
    ),
    "table_small_cifar10_simclr": (
        "The same on SimCLR, transfer: steerable and its neighbors over the better control",
        {
            arm: f"transfer, linear, {name}: gain"
            for arm, name in {
                "steerable": "steerable", "EquiMod": "equimod", "AugSelf": "augself", "E-SSL": "essl", "SIE": "sie",
            }.items()
        },
    ),
    "ladder_mobilenetv1_100": (
        "A frozen MobileNetV1, maps fitted afterwards: best ranks among 50 views of one photograph",
        {"MRR, color": "best mrr, color, photographs", "MRR, crop": "best mrr, crop, photographs"},
    ),
    "ladder_mobilenetv2_100": (
        "The same with a MobileNetV2",
        {"MRR, color": "best mrr, color, photographs", "MRR, crop": "best mrr, crop, photographs"},
    ),
    "distill_mobilenetv2": (
        "A MobileNetV2 fine-tuned on flowers without labels, against the frozen one with a fitted map",
        {
            f"{label}, {arm}": f"{name}, {arm}"
            for label, name in (("relative error", "relative error"), ("linear probe", "probe accuracy"))
            for arm in ("frozen", "steerable")
        },
    ),
    "tta_cost": (
        "Encoding and 1,000 steered views with merged probabilities, over one plain pass of a ResNet-50",
        {f"d = {d}": f"d={d}: 1000 views, probabilities, by parts" for d in (384, 768, 2048)}
        | {"times cheaper than encoding them, d = 768": "d=768: re-encoding 1000 views over this, probabilities"},
    ),
    "tta": (
        "What views gain, CIFAR-10",
        {
            "clean: true augmentation, 8 views": "gain, clean: re-encoded 8 x 0.25",
            "clean: steered, weighted": "gain, clean: weighted few",
            "corrupted: true augmentation, 8 views": "gain, corrupted, all: re-encoded 8 x 0.25",
            "corrupted: steered, weighted": "gain, corrupted, all: weighted few",
        },
    ),
    "ood": (
        "Corrupted images told from clean ones, AUROC, CIFAR-10",
        {
            "MSP": "corruptions, MSP",
            "Mahalanobis": "corruptions, best single pass (mahalanobis)",
            "steered": "corruptions, steered contrast + share",
            "steered, a control encoder": "control encoder: corruptions, steered contrast + share",
            "over its best single pass": "control encoder: gain of steered contrast + share over knn, paired",
        },
    ),
    "retrieval": (
        "Transformed images hidden in a gallery of 10,000, all coordinates moved, Hit@1",
        {
            way: f"Hit@1, all together: {name}"
            for way, name in {
                "unsteered": "unsteered", "steered": "steered", "encoded anew": "reencoded",
            }.items()
        },
    ),
    "serve_load": (
        "`steerable serve`, 10,000 images, 50 clients, on the server's own 2 cores",
        {
            "search, p99": "/api/search, p99",
            "steer, p99": "/api/steer, p99",
            "errors": "errors",
            "slider to neighbors, median": "slider to neighbors, median",
        },
    ),
    "pipeline": (
        "Decoding to two transformed views, images a second over lightly's, 2 CPU cores",
        {f"{side} pixels": f"input over lightly, {side} pixels" for side in (32, 64)},
    ),
    "transforms": (
        "Transforms on one CPU thread, 64 images of 224 px",
        {
            "times as fast as kornia": "times as fast as kornia, 64 images of 224 px",
            "times as fast as torchvision": "times as fast as torchvision, 64 images of 224 px",
        },
    ),
}  # fmt: skip
EMPTY = "Nothing has been measured yet."


def load(folder: Path) -> list[dict[str, Any]]:
    """Every result in a folder, by name."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def number(value: Any) -> str:
    """A cell: three significant digits for a fraction, plain text otherwise."""
    if value is None:
        return "n/a"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).replace("|", "\\|").replace("\n", " ")
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"


def shown(figure: Mapping[str, Any]) -> str:
    """Mean, spread and unit of one figure; the spread as many decimals as the mean."""
    text = number(figure.get("mean"))
    if figure.get("spread") is not None:
        text += f" ± {figure['spread']:.{len(text.partition('.')[2])}f}"
    return f"{text} {figure.get('unit') or ''}".rstrip()


def readme_table(results: Sequence[Mapping[str, Any]]) -> str:
    """One row per result of the excerpt that is there, in its order: what it is about, and the chosen figures."""
    found = {result["name"]: result for result in results}
    rows = [(about, found[name], names) for name, (about, names) in EXCERPT.items() if name in found]
    if not rows:
        return EMPTY
    lines = ["| what | measured |", "|---|---|"]
    for about, result, names in rows:
        chosen = {
            label: result["figures"][name] for label, name in names.items() if name in result["figures"]
        }
        figures = "<br>".join(f"{label}: {shown(figure)}" for label, figure in chosen.items())
        lines.append(f"| {about} ([rows](docs/results.md#{result['name']})) | {figures} |")
    return "\n".join(lines)


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """docs/results.md."""
    head = "# Results\n\nWritten by `make docs` from `results/*.json`; do not edit. What each figure means: "
    head += "[protocols](protocols.md).\nSpread is the standard deviation over seeds.\n"
    return head + "".join(map(section, results)) + ("" if results else f"\n{EMPTY}\n")


def section(result: Mapping[str, Any]) -> str:
    """One result: claim, command, conditions, figures and rows."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    seeds = ", ".join(map(str, result["seeds"])) or "none"
    parts = [
        f"## {result['name']}",
        result["claim"],
        f"```sh\n{result['command']}\n```",
        f"{result['date'][:10]}, commit {result['commit']}; {result['device']}, {result['threads']} "
        f"thread(s); seeds {seeds}; {versions}.",
        table([{"figure": name, "value": shown(figure)} for name, figure in result["figures"].items()]),
        table(result["rows"]),
    ]
    return "\n" + "\n\n".join(part for part in parts if part) + "\n"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as Markdown, columns in order of first appearance; empty for no rows."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if not columns:
        return ""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(number(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def fill(text: str, content: str) -> str:
    """The text with ``content`` between the two markers."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise SystemExit(
            f"README.md lacks a marker; expected {START} and {END}: put both where the table goes"
        )
    return f"{before}{START}\n{content}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the results pages from results/*.json.")
    parser.add_argument("--check", action="store_true", help="only fail where a page is out of date")
    check = parser.parse_args().check
    results = load(ROOT / "results")
    readme, target = ROOT / "README.md", ROOT / "docs" / "results.md"
    pages = {readme: fill(readme.read_text(), readme_table(results)), target: page(results)}
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    if check and stale:
        sys.exit(f"out of date: {', '.join(path.name for path in stale)}; run make docs")
    for path in stale:
        path.write_text(pages[path])
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
