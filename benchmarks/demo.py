"""Records what the demo measured: results/demo.json from the folder that `steerable demo` filled.

steerable demo && python benchmarks/demo.py runs/demo
"""

import argparse
import json
from pathlib import Path

from record import figure, record

FIGURES = {"probe_accuracy": "", "relative_error": "", "mrr": "", "hit_at_1": ""}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/demo"))
    table = json.loads((parser.parse_args().folder / "table.json").read_text())
    rows = table["rows"]
    figures = {
        f"{name.replace('_', ' ')}, {row['model']}": figure([row[name]], unit)
        for name, unit in FIGURES.items()
        for row in rows
    }
    steered = rows[-1]
    ratio = steered["encode_seconds"] / steered["steer_seconds"]
    figures["1,000 views steered, times faster than encoded"] = figure([ratio], "x")
    figures["whole demo"] = figure([table["seconds"]], "s")
    path = record(
        "demo",
        claim="the demo: a control and a steerable encoder on bundled photographs, in at most 4 minutes on 2 cores",
        command="steerable demo && python benchmarks/demo.py runs/demo",
        rows=rows,
        figures=figures,
        seeds=[0],
    )
    print(path)


if __name__ == "__main__":
    main()
