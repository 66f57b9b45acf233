"""Which split of a model over a number of devices trains fastest, of those that fit.

python examples/choose_a_split.py hf:llama-2-7b 8 --batch 64 --sequence 2048
"""

import argparse
import math

import opbound


def splits(devices: int) -> list[dict[str, int]]:
    """All meshes of data, tensor and pipeline parallelism with that many devices."""
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    meshes = ({"dp": devices // (t * p), "tp": t, "pp": p} for t in divisors for p in divisors)
    return [mesh for mesh in meshes if math.prod(mesh.values()) == devices]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("devices", type=int)
    parser.add_argument("--hardware", default="h100-sxm-80gb")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--sequence", type=int, default=2048)
    given = parser.parse_args()
    found = []
    for mesh in splits(given.devices):
        try:
            report = opbound.analyze(
                given.model,
                hardware=given.hardware,
                mode="training",
                parallel=mesh,
                batch=given.batch,
                sequence=given.sequence,
            )
        except opbound.OpboundError as error:
            print(f"{mesh}: {error}")
            continue
        fits = "fits" if report.memory.fits else "does not fit"
        step_s, peak_bytes = report.totals.step_time_s, report.memory.peak_bytes
        print(f"{mesh}: {step_s:.3f} s, {peak_bytes / 1e9:.0f} GB, {fits}")
        if report.memory.fits:
            found.append((step_s, mesh))
    print(f"fastest that fits: {min(found, key=lambda item: item[0])[1] if found else 'none'}")


if __name__ == "__main__":
    main()
