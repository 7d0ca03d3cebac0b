"""Training speed on a CPU: what wsss does to a step, against a plain torch training loop.

Each variant runs in a process of its own, since the memory settings hold for a whole process; rounds alternate.

    python bench/training.py [--size 224] [--batch 16] [--rounds 3]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

VARIANTS = {"plain torch": (False, False), "+ channels last": (True, False), "+ freed memory kept": (True, True)}


def measure(size: int, batch: int, channels_last: bool, keep_memory: bool, steps: int = 4) -> float:
    """Images per second of training steps of EfficientNet-Lite0, after one warm-up step."""
    import ctypes
    import time

    import torch
    from torch.nn import functional as F

    import wsss  # noqa: F401
    from wsss.models import TimmClassifier

    if not keep_memory:  # back to glibc's own defaults
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 128 * 1024)
        libc.mallopt(-1, 128 * 1024)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = TimmClassifier(encoder="tf_efficientnet_lite0", num_classes=20, weights="bundled")
    network.train().to(memory_format=layout)
    images, tags = torch.rand(batch, 3, size, size).contiguous(memory_format=layout), torch.zeros(batch, 20)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.multilabel_soft_margin_loss(network(images), tags).backward()
        optimizer.step()

    step()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return steps * batch / (time.perf_counter() - start)


def main() -> None:
    """Print images per second of each variant and its ratio to the first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variant", choices=VARIANTS, help="measure this one only, in this process")
    options = parser.parse_args()
    if options.variant:
        print(measure(options.size, options.batch, *VARIANTS[options.variant]))
        return
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(options.rounds):
        for name in VARIANTS:
            command = [
                sys.executable,
                __file__,
                "--variant",
                name,
                "--size",
                str(options.size),
                "--batch",
                str(options.batch),
            ]
            rates[name].append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    base = statistics.median(rates["plain torch"])
    for name, values in rates.items():
        median = statistics.median(values)
        print(f"{name:22s} {median:6.1f} images/s  {median / base:.2f}x   ({min(values):.1f} to {max(values):.1f})")


if __name__ == "__main__":
    main()
