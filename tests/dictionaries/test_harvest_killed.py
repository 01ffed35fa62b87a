"""kill -9 in the middle of a harvest and of a training run: both go on, and end as unbroken ones."""

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from mechlab.dictionaries.activations import Activations
from mechlab.dictionaries.harvest import harvest
from mechlab.dictionaries.training import SaeSettings, train
from mechlab.errors import StoreError
from mechlab.lens.lens import Lens
from mechlab.models.tiny_models import tiny

AT = "L1.resid_post"
SETTINGS = SaeSettings(n_features=64, tokens=6000, batch=100, warm_up=5, k=4)
# Forked in a process that has run nothing yet (torch's threads do not survive a fork), because importing takes longest.
KILLED = """
    import json, os, signal, sys, time
    from pathlib import Path
    import torch
    from mechlab.dictionaries.activations import Activations
    from mechlab.dictionaries.harvest import harvest
    from mechlab.dictionaries.training import SaeSettings, train
    from mechlab.lens.lens import Lens
    from mechlab.models.tiny_models import tiny
    import sae_lens

    root, prompts, settings = Path(sys.argv[1]), json.loads(sys.argv[2]), SaeSettings.model_validate_json(sys.argv[3])
    torch.set_num_threads(1)

    def killed(when, work):
        child = os.fork()
        if not child:
            try:
                work()
            finally:
                os._exit(1)
        while not when():
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "the child ended before it was killed"
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL

    slowly = lambda *_: time.sleep(0.03)
    def half():
        harvest(Lens(tiny("llama")), prompts, ["L1.resid_post"], root / "half", shard_rows=20, progress=slowly)
    killed(lambda: len(list((root / "half").glob("shard-*"))) >= 3, half)

    def whole():
        harvest(Lens(tiny("llama")), prompts, ["L1.resid_post"], root / "whole", shard_rows=20)
        train(Activations(root / "whole"), "L1.resid_post", settings, root / "sae", progress=slowly, checkpoint_every=5)
    killed(lambda: any(int(p.name[5:]) >= 20 for p in (root / ".sae.training").glob("step-*")), whole)
"""


def test_both_go_on(tmp_path: Path) -> None:
    lens = Lens(tiny("llama"))
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(5, lens.model.vocab_size, (4 + i % 5,), generator=generator).tolist() for i in range(80)]
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(KILLED),
        str(tmp_path),
        json.dumps(ids),
        SETTINGS.model_dump_json(),
    ]
    subprocess.run(command, check=True, timeout=240)

    shards = sorted((tmp_path / "half").glob("shard-*"))
    assert 3 <= len(shards) < 20
    with pytest.raises(StoreError, match=r"\d of \d+ shards: call harvest again"):
        Activations(tmp_path / "half")
    (tmp_path / "half" / ".shard-00009.safetensors.tmp-1234abcd").write_bytes(b"half")
    before = {path: path.stat().st_mtime_ns for path in shards}
    time.sleep(0.01)
    resumed = harvest(lens, ids, [AT], tmp_path / "half")  # its shards are cut as before
    assert {path: path.stat().st_mtime_ns for path in shards} == before
    assert not list((tmp_path / "half").glob(".*"))
    whole = Activations(tmp_path / "whole")
    assert resumed.manifest == whole.manifest
    rows = torch.arange(len(whole))
    assert torch.equal(resumed.read([AT], rows)[0], whole.read([AT], rows)[0])

    assert not (tmp_path / "sae").exists()
    done: list[int] = []
    made = train(whole, AT, SETTINGS, tmp_path / "sae", progress=lambda _, n, __: done.append(n), checkpoint_every=5)
    assert 20 < done[0] < 60
    unbroken = train(whole, AT, SETTINGS, tmp_path / "unbroken")
    for name, tensor in unbroken.sae.state_dict().items():
        assert torch.equal(tensor, made.sae.state_dict()[name]), name
