"""One ONNX file on several devices: how long a step takes there, and what limits it.

python examples/compare_devices.py model.onnx a100-sxm-80gb h100-sxm-80gb l40s
"""

import sys

import opbound


def main(model: str, devices: list[str]) -> None:
    for device in devices:
        totals = opbound.analyze(model, hardware=device).totals
        by_bound = totals.time_s.by_bound
        limit = max(by_bound, key=lambda bound: by_bound[bound])
        print(f"{device:16} {totals.step_time_s * 1e3:8.3f} ms  {limit}  MFU {totals.mfu:.0%}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:] or ["h100-sxm-80gb"])
