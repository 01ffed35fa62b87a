"""What the emotion study measures on held-out scenarios: recognition, ablation, steering at equal KL, and the text that comes out."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import brentq
from torch import Tensor

from mechlab.analyses.kl_matched import kl_matched
from mechlab.errors import MechlabError
from mechlab.lens.edit import Edit
from mechlab.lens.site import Site
from mechlab.lens.tokens import Tokens
from mechlab.results.metrics import kl_nats
from mechlab.results.statistics import bootstrap_mean
from mechlab.results.study import Progress
from steering.emotion import prompts
from steering.emotion.circuit import Modulation
from steering.emotion.contributions import Parts, of_kind, random_parts, scaled
from steering.emotion.directions import AFTER_ATTENTION, AFTER_MLP, HEADS, NEURONS, recognised, specificity, spread
from steering.emotion.prompts import EMOTIONS, NEXT
from steering.emotion.scenarios import items
from steering.emotion.words import mass, share_of_words, word_ids
from steering.examples import read
from steering.side_effects import distinct_n, repetition
from steering.studies.emotion_evidence import Ablation, ByEmotion, Floats, Outcome, Recognition
from steering.studies.emotion_fitted import Fitted, Labelled
from steering.studies.emotion_settings import Settings

MOST, TOLERANCE = 64.0, 0.1
KINDS = {NEURONS: "neurons", HEADS: "heads"}


class HeldOut:
    """A fitted model on the held-out scenarios: neutral prompts, and the same asked for each emotion in the other wording."""

    def __init__(self, fit: Fitted, settings: Settings, progress: Progress) -> None:
        self.fit, self.settings, self.progress = fit, settings, progress
        lens, found = fit.lens, items("held-out", settings.n_held_out)
        self.neutral = prompts.neutral(lens, found)
        asked = prompts.examples(lens, found, "adjective")
        streams = [Site(kind, i) for i in range(lens.model.n_layers) for kind in (AFTER_ATTENTION, AFTER_MLP)]
        self.asked: dict[str, Tokens] = {}
        parts: dict[str, dict[Site, Tensor]] = {}
        for i, emotion in enumerate(EMOTIONS):
            progress("reading held-out prompts", i, len(EMOTIONS))
            self.asked[emotion] = asked.prompts.select([r for r, one in enumerate(asked.classes) if one == emotion])
            parts[emotion] = read(lens, self.asked[emotion], streams)
        # Rows as in prompts.examples: the first item in six emotions, the second, and so on.
        self.streams = {at: torch.stack([parts[e][at] for e in EMOTIONS], dim=1).flatten(0, 1) for at in streams}
        self.ids = word_ids(lens)
        self.at = fit.plan.readout
        self.unit = dict[str, float](zip(EMOTIONS, spread(self.streams[self.at]).tolist(), strict=True))
        self.base_logits, self.base_stream = self._run(self.neutral, ())

    def __len__(self) -> int:
        return len(self.neutral)

    def recognition(self) -> Recognition:
        """Directions of the fit wording on what the emotions add here."""
        x, by = self.streams[self.at], self.fit.labelled.directions
        seed = self.settings.seed
        shuffled = [self._null(lambda i=i: self.fit.examples.shuffled(seed + i)) for i in range(self.settings.draws)]
        random: list[float] = []
        for i in range(self.settings.draws):
            drawn = torch.randn(len(EMOTIONS), x.shape[1], generator=torch.Generator().manual_seed(seed + i))
            drawn = torch.nn.functional.normalize(drawn - drawn.mean(0), dim=-1)
            random.append(float(specificity(x, dict(zip(EMOTIONS, drawn, strict=True))).mean()))
        rows: list[dict[str, Any]] = []
        for at, given in self.streams.items():
            found = bootstrap_mean(specificity(given, by[at]).double().numpy(), seed=seed)
            name = "after attention" if at.kind == AFTER_ATTENTION else "after the MLP"
            values = {"specificity": found.estimate, "low": found.low, "high": found.high}
            rows.append({"layer": at.layer, "site": name, **values})
        return Recognition(
            specificity(x, by[self.at]).double().numpy(),
            np.array(shuffled),
            np.array(random),
            pd.DataFrame(rows),
            recognised(x, by[self.at]).numpy(),
        )

    def _null(self, examples: Callable[[], Any]) -> float:
        from steering.emotion.directions import differences, directions

        by = directions(differences({self.at: self.fit.activations[self.at]}, examples()))[self.at]
        return float(specificity(self.streams[self.at], by).mean())

    def probe_accuracy(self) -> float:
        """Of the held-out prompts in the other wording, those whose emotion the probe names."""
        named = self.fit.probe(self.streams[self.at]).argmax(1)
        return float((named == np.tile(np.arange(len(EMOTIONS)), len(self))).mean())

    def lost(self, choose: Callable[[str], Parts], factor: float = 0.0) -> Floats:
        """``[group]``: projection lost at the readout when each emotion's chosen units are scaled; mean over the emotions."""
        losses: list[Floats] = []
        for i, emotion in enumerate(EMOTIONS):
            edits = scaled(self.fit.lens, choose(emotion), factor)
            where = self.at.at(-1)
            after = self.fit.lens.run(self.asked[emotion], edits, [where], logits="none")[where].float().cpu()
            before = self.streams[self.at][i :: len(EMOTIONS)]
            losses.append(self._projected(before - after, emotion))
        return np.mean(losses, axis=0)

    def lost_each(self, choices: Sequence[Callable[[str], Parts]]) -> Floats:
        """``[choice]``: mean over groups of what ``lost`` tells of each way to choose units, all ways in one pass."""
        where, losses = self.at.at(-1), list[Floats]()
        for i, emotion in enumerate(EMOTIONS):
            self.progress("ablation of drawn units", i, len(EMOTIONS))
            variants = [scaled(self.fit.lens, choose(emotion), 0.0) for choose in choices]
            after = self.fit.lens.each(self.asked[emotion], variants, where).float().cpu()
            before = self.streams[self.at][i :: len(EMOTIONS)]
            losses.append(self._projected((before - after).mean(1), emotion))
        return np.mean(losses, axis=0)

    def ablation_of_top(self, kind: str) -> Floats:
        """What the emotions' own top units carry."""
        return self.lost(lambda e: self.fit.top(kind, self._k(kind), self.fit.labelled, e))

    def ablation(self, kind: str, shuffled: Sequence[Labelled]) -> Ablation:
        """Own units, and controls."""
        fit, k, seed = self.fit, self._k(kind), 1000 * self.settings.seed
        own = {e: fit.top(kind, k, fit.labelled, e) for e in EMOTIONS}
        draws: list[Callable[[str], Parts]] = [
            lambda e, i=i: random_parts(fit.lens, own[e], seed + i) for i in range(self.settings.draws)
        ]
        nulls: list[Callable[[str], Parts]] = [lambda e, one=one: fit.top(kind, k, one, e) for one in shuffled]
        drawn = self.lost_each([*draws, *nulls])
        return Ablation(
            self.lost(lambda e: own[e]),
            self.lost(lambda e: own[NEXT[e]]),
            drawn[: len(draws)],
            drawn[len(draws) :],
            pd.DataFrame(self._curve(kind)),
        )

    def _k(self, kind: str) -> int:
        return self.settings.k_neurons if kind == NEURONS else self.settings.k_heads

    def _curve(self, kind: str) -> list[dict[str, Any]]:
        """Change of the projection as more units of each layer are zeroed, or doubled."""
        rows: list[dict[str, Any]] = []
        ks = [k for k in ((1, 4, 16) if kind == NEURONS else (1, 2, 4)) if k <= (self.fit.lens.layout.size(kind) or 0)]
        for done, k in enumerate(ks):
            self.progress(f"ablation: more {KINDS[kind]}", done, len(ks))
            own = {e: self.fit.top(kind, k, self.fit.labelled, e) for e in EMOTIONS}
            drawn = {e: random_parts(self.fit.lens, own[e], self.settings.seed) for e in EMOTIONS}
            for what, factor, units, chosen in (
                ("zeroed", 0.0, "top", own),
                ("zeroed", 0.0, "random", drawn),
                ("doubled", 2.0, "top", own),
            ):
                found = bootstrap_mean(-self.lost(chosen.__getitem__, factor), seed=self.settings.seed)
                row = {"kind": KINDS[kind], "k": k, "units": units, "what": what}
                rows.append(row | {"change": found.estimate, "low": found.low, "high": found.high})
        return rows

    def outcome(self, emotion: str, edits: Sequence[Edit], strength: float, reached: bool) -> Outcome:
        """What edits do to the neutral prompts."""
        logits, stream = self._run(self.neutral, edits)
        return self._outcome(emotion, logits.double().softmax(-1), stream, strength, reached)

    def at_equal_kl(self, emotion: str, edits: Modulation, start: float = 1.0) -> Outcome:
        """At the strength that costs the KL of the settings; where none does, at ``start``, and marked."""
        try:
            (found,) = kl_matched(
                self.fit.lens, self.neutral, edits, [self.settings.kl], start=start, most=MOST, tolerance=TOLERANCE
            )
        except MechlabError:  # reached at no strength: told in the claims' notes and the tables
            return self.outcome(emotion, edits(start), start, False)
        return self.outcome(emotion, edits(found.strength), found.strength, True)

    def each(self, make: Callable[[str], Modulation], starts: Mapping[str, float] | None = None) -> ByEmotion:
        """``at_equal_kl`` for every emotion."""
        return {e: self.at_equal_kl(e, make(e), starts[e] if starts else 1.0) for e in EMOTIONS}

    def prompting(self) -> tuple[ByEmotion, ByEmotion]:
        """Asking in the prompt: in so many replies that the KL is the same, and in all of them."""
        mixed: ByEmotion = {}
        whole: ByEmotion = {}
        base = self.base_logits.double().softmax(-1)
        for emotion in EMOTIONS:
            logits, stream = self._run(self.asked[emotion], ())
            asked = logits.double().softmax(-1)

            def cost(share: float, asked: Tensor = asked) -> float:
                return float(_kl(base, (1 - share) * base + share * asked).mean())

            reached = cost(1.0) >= self.settings.kl
            share = float(brentq(lambda s: cost(s) - self.settings.kl, 0.0, 1.0, xtol=1e-6)) if reached else 1.0  # pyright: ignore[reportArgumentType]
            whole[emotion] = self._outcome(emotion, asked, stream, 1.0, True)
            mixture = self._outcome(emotion, (1 - share) * base + share * asked, stream, share, reached)
            own = whole[emotion]  # what is not linear in the next token's probabilities is averaged over replies
            mixed[emotion] = Outcome(
                share, reached, mixture.kl, mixture.words, share * own.projection, share * own.probe
            )
        return mixed, whole

    def texts(self, ways: Mapping[str, Mapping[str, Sequence[Edit]]], progress: Progress) -> pd.DataFrame:
        """Greedy text of some neutral prompts: ``way``, ``emotion``, ``loss`` (nats per token, unsteered), ``distinct_2``,
        ``repetition``, ``words`` (share from the emotion's lexicon), ``example``.
        """
        rows_of = range(0, len(self), max(1, len(self) // self.settings.n_texts))[: self.settings.n_texts]
        neutral = self.neutral.select(rows_of)
        rows = [self._text("unsteered", emotion, neutral, neutral, ()) for emotion in EMOTIONS[:1]]
        for i, emotion in enumerate(EMOTIONS):
            progress("text", i, len(EMOTIONS))
            rows.append(self._text("prompting", emotion, neutral, self.asked[emotion].select(rows_of), ()))
            rows += [self._text(way, emotion, neutral, neutral, by[emotion]) for way, by in ways.items()]
        return pd.DataFrame(rows)

    def _text(self, way: str, emotion: str, neutral: Tokens, given: Tokens, edits: Sequence[Edit]) -> dict[str, Any]:
        lens = self.fit.lens
        ids = lens.continued(given, self.settings.n_tokens, edits)
        texts = [str(lens.model.tokenizer.decode(row, skip_special_tokens=True)) for row in ids.tolist()]
        return {
            "way": way,
            "emotion": emotion if way != "unsteered" else "none",
            "loss": float(lens.loss_of(neutral, ids).mean()),
            "distinct_2": distinct_n(texts),
            "repetition": float(np.mean([repetition(text, 2) for text in texts])),
            "words": float(np.mean([share_of_words(text, emotion) for text in texts])) if way != "unsteered" else 0.0,
            "example": texts[0].strip(),
        }

    def _run(self, given: Tokens, edits: Sequence[Edit]) -> tuple[Tensor, Tensor]:
        """Next-token logits and the stream at the readout."""
        where = self.at.at(-1)
        run = self.fit.lens.run(given, edits, [where], logits="last")
        assert run.last_logits is not None
        return run.last_logits.float().cpu(), run[where].float().cpu()

    def _projected(self, moved: Tensor, emotion: str) -> Floats:
        return (moved @ self.fit.labelled.directions[self.at][emotion]).double().numpy() / self.unit[emotion]

    def _outcome(self, emotion: str, p: Tensor, stream: Tensor, strength: float, reached: bool) -> Outcome:
        """``p``: ``[n, vocab]`` next-token probabilities."""
        base, column = self.base_logits.double().softmax(-1), EMOTIONS.index(emotion)
        return Outcome(
            strength,
            reached,
            _kl(base, p).numpy(),
            (mass(p, self.ids, emotion) - mass(base, self.ids, emotion)).numpy(),
            self._projected(stream - self.base_stream, emotion),
            (self.fit.probe(stream) - self.fit.probe(self.base_stream))[:, column],
        )


def _kl(base: Tensor, p: Tensor) -> Tensor:
    return kl_nats(base.clamp_min(1e-300).log(), p.clamp_min(1e-300).log())


def parts_of(given: Mapping[str, Mapping[Site, int]], of: Labelled) -> dict[str, Parts]:
    """Emotion -> the units of its circuit under some labels."""
    return {emotion: of.parts(emotion, given[emotion]) for emotion in EMOTIONS}


def size(parts: Iterable[Parts], kind: str) -> float:
    """Mean number of units of a kind."""
    return float(np.mean([sum(len(units) for units in of_kind(one, kind).values()) for one in parts]))
