"""Test session: no spinning threads, no network beyond loopback."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning OpenMP threads make two shared cores 10-20 times slower
os.environ["HF_HUB_OFFLINE"] = "1"
