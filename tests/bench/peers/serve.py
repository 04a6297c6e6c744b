"""`python -m tests.bench.peers.serve PEER [SLOTS]`: becomes the peer's workers."""

import importlib
import os
import sys
from pathlib import Path

peer = importlib.import_module(f"tests.bench.peers.{sys.argv[1]}")
command = peer.worker(int(sys.argv[2]) if len(sys.argv) > 2 else None)
os.execv(Path(sys.executable).with_name(command[0]), command)
