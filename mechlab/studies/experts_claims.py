"""The experts study's claims and their rules, written before the run; the verdicts are computed.

The behaviour is the contrast's (for the trained MoE: refusal). Shares are of prompts, losses in nats per token. The paper, with 10 of
14,848 experts off: 52 % fewer refusals, 9 % changed by random experts, 1.3 % of the other prompts newly refused, benchmark scores
unchanged; forced on, 10 % of answers become refusals. Here experts are few and each does much, so only the shape can be compared, and
the thresholds ask for it.
"""

from collections.abc import Sequence

import numpy as np

from mechlab.analyses.experts import Expert
from mechlab.results.finding import Finding
from mechlab.results.rule import Control, Rule
from mechlab.results.stating import UNKNOWN, claim, control, drawn
from mechlab.results.statistics import Interval, bootstrap_mean
from mechlab.studies.experts_evidence import Draws, Evidence, Floats, Side

MIN_GAP = 0.5
"""Share by which prompts that should show the behaviour must show it more often than those that should not."""
MIN_CHANGE = 0.2
"""Share of prompts whose replies must change."""
MIN_WEIGHT = 0.05
"""Difference of an expert's weight, summed over a prompt, that counts as one (a token gives 1 in all where weights sum to 1)."""
MIN_RISE = 0.05
"""Share of other prompts that forced experts must bring to the behaviour (the paper: 0.10)."""
MAX_NATS = 0.1
"""Rise of the loss on neutral text that counts as none."""
MAX_WRONG = 0.1
"""Share of questions that may go wrong."""
MAX_NEW = 0.05
"""Share of other prompts that may newly show the behaviour when experts are off (the paper: 0.013)."""
MATCHED, UNIFORM = "random experts, used as often", "random experts, same layers"
SHUFFLED, TWIN, FREQUENT = "shuffled labels", "random-weight twin", "most used experts"
NOTHING = "nothing switched"


def findings(evidence: Evidence) -> list[Finding]:
    """All claims, in reading order."""
    return [
        _behaviour(evidence),
        _answering(evidence),
        _suppression(evidence),
        _random(evidence),
        _activation(evidence),
        _neutral_text(evidence),
        _questions(evidence),
        _regression(evidence),
    ]


def _behaviour(evidence: Evidence) -> Finding:
    model, twin, name = evidence.model, evidence.twin, evidence.contrast.name
    return claim(
        "behaviour",
        f"The model shows the behaviour ({name}) on the prompts that ask for it, and not on their pairs.",
        "share of pairs: behaving prompts that show it minus plain prompts that do",
        _interval(model.base.behaving - model.base.plain, evidence),
        [control(TWIN, _interval(twin.base.behaving - twin.base.plain, evidence))],
        Rule(direction=">", threshold=MIN_GAP),
    )


def _answering(evidence: Evidence) -> Finding:
    model, twin = evidence.model, evidence.twin
    return claim(
        "answering",
        f"The most relevant experts ({named(model.top)}) are used more where the behaviour is asked for, on other prompts too.",
        "summed weight in a behaving prompt minus that in its pair, mean over the experts",
        _interval(model.difference(model.top), evidence),
        [
            _over_draws(MATCHED, np.stack([model.difference(experts) for experts in evidence.matched.experts])),
            _over_draws(SHUFFLED, _null(evidence), "chosen and measured with labels that say nothing"),
            control(TWIN, _interval(twin.difference(twin.top), evidence), f"its own choice: {named(twin.top)}"),
        ],
        Rule(direction=">", threshold=MIN_WEIGHT),
    )


def _null(evidence: Evidence) -> Floats:
    """``[draw, pair]``: experts chosen by shuffled labels, on pairs whose sides are shuffled as well."""
    rng = np.random.default_rng(int(str(evidence.settings["seed"])))
    differences = [evidence.model.difference(experts) for experts in evidence.shuffled.experts]
    return np.stack([values * rng.choice([-1.0, 1.0], len(values)) for values in differences])


def _suppression(evidence: Evidence) -> Finding:
    model, twin, base = evidence.model, evidence.twin, evidence.model.base.behaving
    return claim(
        "suppression",
        f"Without the {len(model.top)} most relevant experts ({named(model.top)}), chosen on other prompts, the behaviour goes: "
        "more than without random experts that are used as often.",
        "share of prompts that show the behaviour, before minus after",
        _interval(base - model.suppressed.behaving, evidence),
        [
            _over_draws(MATCHED, base - evidence.matched.behaving),
            _over_draws(UNIFORM, base - evidence.uniform.behaving, "shown: rare ones do nothing"),
            _over_draws(
                SHUFFLED,
                base - evidence.shuffled.behaving,
                "top of relevance for labels that say nothing; shown: by chance they may be the same experts",
            ),
            control(FREQUENT, _interval(base - evidence.frequent.behaving, evidence), "as many, by load alone; shown"),
            control(TWIN, _removed(twin, evidence), f"its own choice: {named(twin.top)}"),
        ],
        Rule(direction=">", threshold=MIN_CHANGE, beats=(MATCHED, TWIN)),
    )


def _random(evidence: Evidence) -> Finding:
    """The paper's second inequality: random experts do something too."""
    base = evidence.model.base.behaving
    changed = np.abs(base - evidence.matched.behaving).mean(axis=0)
    return claim(
        "random",
        "Random experts that are used as often change replies too when they are off.",
        "share of replies that change class, mean over draws",
        _interval(changed, evidence),
        [control(NOTHING, _interval(np.zeros_like(base), evidence), "the same replies again")],
        Rule(direction=">", threshold=0.0),
    )


def _activation(evidence: Evidence) -> Finding:
    model, twin, base = evidence.model, evidence.twin, evidence.model.base.plain
    return claim(
        "activation",
        f"Forced on (weight {evidence.weight:.2f}), the most relevant experts ({named(model.forced)}) bring the behaviour to prompts that "
        "do not ask for it.",
        "share of plain prompts that show the behaviour, after minus before",
        _interval(model.activated.plain - base, evidence),
        [
            _over_draws(MATCHED, evidence.forced.plain - base, "forced on"),
            control(
                TWIN,
                _interval(twin.activated.plain - twin.base.plain, evidence),
                f"its own choice: {named(twin.forced)}",
            ),
        ],
        Rule(direction=">", threshold=MIN_RISE),
    )


def _neutral_text(evidence: Evidence) -> Finding:
    model, twin = evidence.model, evidence.twin
    return claim(
        "neutral_text",
        "Neutral text is predicted as well without the most relevant experts.",
        "rise of the loss on neutral text, nats per token",
        _if_shown(evidence, model.without.nats - model.quality.nats),
        [
            _over_draws(MATCHED, evidence.matched.nats - model.quality.nats, "shown, not to be beaten"),
            control(TWIN, _interval(twin.without.nats - twin.quality.nats, evidence), "shown, not to be beaten"),
        ],
        Rule(direction="<", threshold=MAX_NATS, beats=()),
    )


def _questions(evidence: Evidence) -> Finding:
    model, twin = evidence.model, evidence.twin
    return claim(
        "questions",
        "Questions are answered as well without the most relevant experts.",
        "share of questions answered, before minus after",
        _if_shown(evidence, model.quality.right - model.without.right),
        [control(TWIN, _interval(twin.quality.right - twin.without.right, evidence), "shown, not to be beaten")],
        Rule(direction="<", threshold=MAX_WRONG, beats=()),
    )


def _regression(evidence: Evidence) -> Finding:
    """Also of the paper: prompts that were answered must not be refused now."""
    model = evidence.model
    newly = np.maximum(model.suppressed.plain - model.base.plain, 0)
    return claim(
        "regression",
        "Prompts that did not show the behaviour do not begin to, without the most relevant experts.",
        "share of plain prompts that newly show the behaviour",
        _if_shown(evidence, newly),
        [_over_draws(MATCHED, np.maximum(evidence.matched.plain - model.base.plain, 0), "shown, not to be beaten")],
        Rule(direction="<", threshold=MAX_NEW, beats=()),
    )


def _if_shown(evidence: Evidence, values: Floats) -> Interval:
    """What switching costs is a question only where there is a behaviour to switch off; else nothing is known."""
    base = evidence.model.base
    return _interval(values, evidence) if float((base.behaving - base.plain).mean()) >= MIN_GAP else UNKNOWN


def _removed(side: Side, evidence: Evidence) -> Interval:
    return _interval(side.base.behaving - side.suppressed.behaving, evidence)


def _interval(values: Floats, evidence: Evidence) -> Interval:
    return bootstrap_mean(values, seed=int(str(evidence.settings["seed"])))


def _over_draws(name: str, values: Floats, note: str = "") -> Control:
    """``[draw, n]``: the mean over draws, from the weakest to the strongest draw."""
    return drawn(name, values.mean(axis=1), values.shape[1], note)


def named(experts: Sequence[Expert]) -> str:
    """``L2E5, L0E1``."""
    return ", ".join(f"L{layer}E{expert}" for layer, expert in experts)


def mean_change(draws: Draws, base: Floats) -> float:
    """Mean drop over draws and prompts."""
    return float((base - draws.behaving).mean())
