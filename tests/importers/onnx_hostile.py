"""Imports hostile ONNX files with 1 GB of memory; prints "NAME SECONDS MESSAGE" of each.

python onnx_hostile.py FOLDER
"""

import resource
import sys
import time
from pathlib import Path

LIMIT_BYTES = 1 << 30


def main(folder):
    from graph_ir.errors import OpboundError
    from importers import load

    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    for path in sorted(Path(folder).glob("*.onnx")):
        start = time.process_time()
        try:
            load(path)
            message = "imported"
        except OpboundError as error:
            message = str(error)
        print(path.stem, round(time.process_time() - start, 2), message, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
