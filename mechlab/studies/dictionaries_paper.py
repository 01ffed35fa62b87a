"""Published numbers beside the study's own.

Absorption on the synthetic hierarchy (child mean 1.0, child std 1/4): Costa et al., arXiv 2506.03093. Steering at equal KL on Llama-3.1-8B,
layer 23, by a language model as judge (0 to 2), and the share of SNMF features with S_CD above 0: Shafran et al., arXiv 2506.10920.
"""

import numpy as np
import pandas as pd

from mechlab.studies.dictionaries_evidence import L1, MEANS, MP, SUBJECT, Evidence, Floats

ABSORPTION = {MP: 0.0011, "Matryoshka": 0.22, L1: 0.47, "BatchTopK": 0.42}
STEERING = {SUBJECT: 0.37, MEANS: 0.40, "SNMF": 0.45}
DETECTING = {"SNMF": 0.75}


def beside(evidence: Evidence, judged: dict[str, Floats]) -> pd.DataFrame:
    """``what, method, source, paper, ours``, a row for each published number."""
    rows: list[tuple[str, str, str, float, float]] = []
    for method, paper in ABSORPTION.items():
        ours = float(np.nanmedian([one.absorption for one in evidence.truth[method]]))
        rows.append(("absorption", method, "arXiv 2506.03093", paper, ours))
    for method, paper in STEERING.items():
        rows.append(("steering at equal KL", method, "arXiv 2506.10920", paper, float(judged[method].mean())))
    for method, paper in DETECTING.items():
        detections = evidence.families[method].score.detections
        ours = float(np.mean([one.s_cd > 0 for one in detections]))
        rows.append(("concepts with S_CD above 0", method, "arXiv 2506.10920", paper, ours))
    return pd.DataFrame(rows, columns=["what", "method", "source", "paper", "ours"])
