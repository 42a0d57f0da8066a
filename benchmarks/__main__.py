"""Run the benchmarks: `python -m benchmarks`."""

from __future__ import annotations

import torch

from benchmarks.preset import main

if __name__ == "__main__":
    with torch.no_grad():
        main()
