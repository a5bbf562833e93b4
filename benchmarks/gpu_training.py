"""Training ResNet-50 on one GPU: images per second, share of the card's peak, and what the GPU waits for.

    python benchmarks/gpu_training.py --budget 95 --out results/gpu_training.json

Random bytes in memory, bf16, channels-last, fused AdamW; an image counts once, though two views of it are encoded.
Needs neither data nor the packages datasets, lightly, jsonargparse, scikit-image. Columns:

    images_per_second  over the timed steps, wall clock, everything in
    tflops, peak       torch.utils.flop_counter over one step, both directions; share of the card's dense bf16 peak
    gpu_idle           share of the time in which no kernel ran, by the profiler's trace: an upper bound of waiting
    waits_for_data     the same less that of steps on a batch that lies ready: what the input adds, at least 0
    input              fetching and transforming images alone, as a share of the step
    syncs              places in a step where the CPU waits for the GPU

Each configuration is written when it is done; one that the budget has no time for is left out, and said so. On a CPU
the columns that need a GPU are missing.
"""

import argparse
import gc
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from record import figure, record
from torch.utils.flop_counter import FlopCounterMode

from steerable.data import ImageSet
from steerable.training import EncoderConfig, TrainConfig
from steerable.training.run import Run
from steerable.training.setup import fast_math

PEAKS = {
    "H100": 989.4,
    "H200": 989.4,
    "A100": 312.0,
    "L40S": 362.0,
    "RTX 4090": 165.2,
}  # TFLOP/s, bf16, dense
ARMS = ("low_rank", "none", "basis")  # of the map; none is the control
COST = {
    True: 45,
    False: 10,
}  # seconds that a configuration takes, compiled or not: what the budget is asked for


def configurations(sides: list[int], batches: list[int]) -> list[dict[str, Any]]:
    """The map for wide embeddings first, uncompiled and compiled, then what the map costs."""
    both = list(zip(sides, batches, strict=True))
    first = [{"side": s, "batch": b, "map": ARMS[0], "compile": c} for c in (False, True) for s, b in both]
    return first + [
        {"side": s, "batch": b, "map": arm, "compile": False} for arm in ARMS[1:] for s, b in both
    ]


def prepare(encoder: str, side: int, batch: int, arm: str, compiled: bool) -> Run:
    n = 4 * batch
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.arange(n) % 100
    data = ImageSet(images, labels, tuple(map(str, range(100))), tuple(map(str, range(n))))
    config = TrainConfig(
        encoder=EncoderConfig(encoder, image_size=side),
        steering=arm,  # pyright: ignore[reportArgumentType]
        batch_size=batch,
        epochs=1000,
        precision="bf16-mixed",
        compile=compiled,
    )
    run = Run(config, data, data.subset(range(8)), None)
    run.learner.train()
    return run


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(step: Callable[[int], Any], steps: int) -> float:
    wait()
    began = time.perf_counter()
    for i in range(steps):
        step(i)
    wait()
    return (time.perf_counter() - began) / steps


def idle(step: Callable[[int], Any], steps: int) -> float:
    """Share of the time from the first kernel to the last in which none ran."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    wait()
    with torch.profiler.profile(activities=activities) as profile:
        for i in range(steps):
            step(i)
        wait()
    kind = torch.autograd.DeviceType.CUDA
    spans = sorted(
        (e.time_range.start, e.time_range.end)
        for e in profile.events()
        if e.device_type == kind and not e.is_user_annotation and "Optimizer" not in e.name
    )
    busy, end = 0.0, spans[0][0]
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return 1 - busy / (end - spans[0][0])


def syncs(step: Callable[[int], Any]) -> list[str]:
    """Where a step makes the CPU wait, as file:line."""
    wait()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step(0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]


def learn(run: Run, ready: tuple[Any, ...]) -> None:
    run.backward(*ready)
    run.update()


def flops(run: Run, index: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
        run.train_step(index)
    return counter.get_total_flops()


def measure(encoder: str, settings: dict[str, Any], steps: int) -> dict[str, Any]:
    side, batch = settings["side"], settings["batch"]
    began = time.perf_counter()
    run = prepare(encoder, side, batch, settings["map"], settings["compile"])
    index = [torch.randperm(4 * batch)[:batch] for _ in range(4)]
    gpu = run.fabric.device.type == "cuda"
    with fast_math(run.fabric.device, "bf16-mixed"):
        count = flops(run, index[0])
        seconds(lambda i: run.train_step(index[i % 4]), 5)  # warm-up: cuDNN's trials, the compiler
        started = time.perf_counter() - began
        step = seconds(lambda i: run.train_step(index[i % 4]), steps)
        ready = run.inputs(index[0])
        learning = seconds(lambda _: learn(run, ready), steps)
        row = {
            **settings,
            "images_per_second": batch / step,
            "step_ms": 1e3 * step,
            "ready_ms": 1e3 * learning,
            "input": seconds(lambda i: run.inputs(index[i % 4]), steps) / step,
            "tflops": count / step / 1e12,
            "start_s": started,
        }
        if gpu:
            peak = next((p for name, p in PEAKS.items() if name in torch.cuda.get_device_name()), None)
            whole = idle(lambda i: run.train_step(index[i % 4]), 6)
            alone = idle(lambda _: learn(run, ready), 6)
            where = syncs(lambda i: run.train_step(index[i]))
            print("waits:", where, flush=True)
            row |= {
                "peak": peak and row["tflops"] / peak,
                "gpu_idle": whole,
                "waits_for_data": max(0.0, whole - alone),
                "syncs": len(where),
                "memory_gib": torch.cuda.max_memory_allocated() / 2**30,
            }
            torch.cuda.reset_peak_memory_stats()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="timm/resnet50")
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 224])
    parser.add_argument("--batches", type=int, nargs="+", default=[512, 256])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--budget", type=float, default=95, help="seconds")
    parser.add_argument("--out", default=None)
    args = parser.parse_args()
    began, rows, left_out = time.perf_counter(), [], []
    for settings in configurations(args.sides, args.batches):
        if time.perf_counter() - began + COST[settings["compile"]] > args.budget:
            left_out.append(settings)
            continue
        rows.append(measure(args.encoder, settings, args.steps))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(f"{time.perf_counter() - began:5.1f} s", rows[-1], flush=True)
        save(rows, args.out)
    print("left out, no time:", left_out)


def save(rows: list[dict[str, Any]], path: str | None) -> None:
    best = max(rows, key=lambda row: row["tflops"])
    record(
        "gpu_training",
        claim="ResNet-50 in bf16 on one GPU: the GPU waits for data less than 5 % of the time, images in memory",
        command="python benchmarks/gpu_training.py",
        rows=rows,
        figures={
            **{
                f"images per second, {row['side']} pixels{', compiled' if row['compile'] else ''}": figure(
                    [row["images_per_second"]], "images/s"
                )
                for row in rows
                if row["map"] == ARMS[0]
            },
            "share of peak, best": figure([best.get("peak") or float("nan")]),
            "waits for data, most": figure([max(row.get("waits_for_data") or 0 for row in rows)]),
        },
        path=path,
    )


if __name__ == "__main__":
    main()
