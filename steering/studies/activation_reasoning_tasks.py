"""What the activation-reasoning study asks: chains of invented kinds (as in PrOntoQA), and places told by a city or by something else.

An item is a statement that is read at its last token, the concept it is about, and questions by number of hops. Every question has a right
answer and one foil, so a guess is right half the time at every number of hops.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from mechlab.errors import PromptError
from mechlab.lens.lens import Lens
from mechlab.models.model import Model
from steering.rules.check import checked
from steering.rules.clause import Clause, read_rules

CHAINS, NAMED, INDIRECT = "invented kinds", "named city", "indirect cue"
WHO = "it"
"""What every proposition of an item is said of."""

# country: continent; cities that detectors are made from (3) and thresholds are set on (2) | cities | cues: both for evaluation alone
PLACES: str = """
France: Europe; Paris, Lyon, Marseille, Nice, Bordeaux | Toulouse, Strasbourg | the Eiffel Tower, the Louvre, Napoleon
Italy: Europe; Rome, Milan, Naples, Venice, Florence | Turin, Bologna | the Colosseum, Leonardo da Vinci, Ferrari
Germany: Europe; Berlin, Munich, Hamburg, Cologne, Frankfurt | Stuttgart, Dresden | the Reichstag, Oktoberfest, Volkswagen
Japan: Asia; Tokyo, Osaka, Kyoto, Nagoya, Hiroshima | Yokohama, Nagasaki | the samurai, Mount Fuji, sushi
China: Asia; Beijing, Shanghai, Wuhan, Nanjing, Shenzhen | Guangzhou, Chengdu | the Great Wall, Confucius, the Ming dynasty
India: Asia; Delhi, Mumbai, Chennai, Kolkata, Jaipur | Bangalore, Hyderabad | the Taj Mahal, Mahatma Gandhi, Bollywood
Brazil: South America; Rio de Janeiro, Brasilia, Recife, Salvador, Curitiba | Porto Alegre, Fortaleza | samba, Pele, Copacabana beach
Peru: South America; Lima, Cusco, Arequipa, Trujillo, Iquitos | Puno, Chiclayo | Machu Picchu, the Inca emperors, the Nazca lines
Argentina: South America; Buenos Aires, Rosario, Mendoza, Mar del Plata, Salta | Cordoba, Ushuaia | the tango, Diego Maradona, Eva Peron
Canada: North America; Toronto, Vancouver, Ottawa, Calgary, Winnipeg | Montreal, Edmonton | the maple leaf, ice hockey, the Yukon
Mexico: North America; Guadalajara, Tijuana, Monterrey, Puebla, Acapulco | Cancun, Veracruz | the Aztecs, Frida Kahlo, tequila
Cuba: North America; Havana, Santiago, Camaguey, Holguin, Cienfuegos | Santa Clara, Guantanamo | Fidel Castro, Che Guevara, Cohiba cigars
"""
_WORLDS = {"Europe": "Old", "Asia": "Old", "South America": "New", "North America": "New"}
MAKING = ("She thought about {}", "A book about {}", "They talked about {}")
EVALUATION = "We heard a story about {}"
CONTINENT = 2
"""Hops to the continent."""
ASKED = {
    1: ", which belongs to the country of",
    CONTINENT: ", which belongs to the continent of",
    3: ". Of the Old World and the New World, this belongs to the",
}


Place = tuple[str, list[str], list[str], list[str]]
"""Continent, cities of the detectors, other cities, cues."""


@dataclass(frozen=True)
class Question:
    """``hops`` from the statement; ``right`` and ``foil`` are concepts, their texts what the model would say (told by its first token)."""

    hops: int
    text: str
    right: str
    foil: str
    right_text: str
    foil_text: str


@dataclass(frozen=True)
class Item:
    statement: str
    concept: str
    questions: tuple[Question, ...]

    def at(self, hops: int) -> Question:
        return next(question for question in self.questions if question.hops == hops)


@dataclass(frozen=True)
class Domain:
    """Concepts, rules and items.

    Attributes:
        making: detectors are made from these. calibrating: thresholds are set on these. evaluation: suite -> items. No statement is in two.
    """

    concepts: tuple[str, ...]
    rules: tuple[Clause, ...]
    making: tuple[Item, ...]
    calibrating: tuple[Item, ...]
    evaluation: dict[str, tuple[Item, ...]]


def _concept(text: str) -> str:
    return text.lower().replace(" ", "_")


def places(model: Model, seed: int = 0) -> Domain:
    """City or cue -> country (1 hop) -> continent (2) -> Old or New World (3)."""
    rows = dict(_rows())
    by_part: dict[str, list[Item]] = {"making": [], "calibrating": [], NAMED: [], INDIRECT: []}
    draw = random.Random(f"places {seed}")
    for country, (_, cities, others, cues) in rows.items():
        parts = {"making": cities[:3], "calibrating": cities[3:], NAMED: others, INDIRECT: cues}
        for part, found in parts.items():
            templates = (EVALUATION,) if part in (NAMED, INDIRECT) else MAKING
            for template, cue in product(templates, found):
                foil = draw.choice([one for one in rows if _world(rows, one) != _world(rows, country)])
                by_part[part].append(_place(template.format(cue), rows, country, foil))
    links = [(country, row[0]) for country, row in rows.items()]
    links += [(continent, f"{world} World") for continent, world in _WORLDS.items()]
    concepts = tuple(map(_concept, rows))
    domain = Domain(
        concepts,
        checked(_implications([(_concept(a), _concept(b)) for a, b in links]), concepts),
        tuple(by_part["making"]),
        tuple(by_part["calibrating"]),
        {suite: tuple(by_part[suite]) for suite in (NAMED, INDIRECT)},
    )
    _check_told_apart(
        model, [question for items in domain.evaluation.values() for i in items for question in i.questions]
    )
    return domain


def _rows() -> Iterator[tuple[str, Place]]:
    for line in PLACES.strip().splitlines():
        country, rest = line.split(": ")
        continent, lists = rest.split("; ")
        cities, others, cues = (part.split(", ") for part in lists.split(" | "))
        yield country, (continent, cities, others, cues)


def _world(rows: dict[str, Place], country: str) -> str:
    return _WORLDS[rows[country][0]]


def _place(statement: str, rows: dict[str, Place], country: str, foil: str) -> Item:
    levels = [(one, rows[one][0], _world(rows, one)) for one in (country, foil)]
    questions: list[Question] = []
    for hops, (right, wrong) in enumerate(zip(*levels, strict=True), start=1):
        told, foiled = (_concept(f"{text} World" if hops == len(ASKED) else text) for text in (right, wrong))
        questions.append(Question(hops, statement + ASKED[hops], told, foiled, f" {right}", f" {wrong}"))
    return Item(statement, _concept(country), tuple(questions))


def _implications(links: Sequence[tuple[str, str]]) -> tuple[Clause, ...]:
    """Rules in their text form: each first concept implies the second."""
    return read_rules(
        "rules:\n" + "\n".join(f"- {{name: {a}-is-{b}, if: ['{a}(?x)'], then: '{b}(?x)'}}" for a, b in links)
    )


def invented_names() -> list[str]:
    """Words that mean nothing, in a fixed order without pattern."""
    parts = (
        [
            "b",
            "d",
            "f",
            "g",
            "k",
            "l",
            "m",
            "n",
            "p",
            "r",
            "s",
            "t",
            "v",
            "z",
            "br",
            "dr",
            "fl",
            "gr",
            "kr",
            "pl",
            "tr",
        ],
        "aeiou",
        ["lb", "rv", "zk", "nd", "mb", "xt"],
        ["en", "ok", "ul", "ar"],
    )
    found = ["".join(letters) for letters in product(*parts)]
    random.Random("names").shuffle(found)
    return found


def kinds(
    model: Model,
    hops: Sequence[int],
    n_chains: int = 6,
    sizes: tuple[int, int, int] = (4, 3, 5),
    seed: int = 0,
) -> Domain:
    """Chains of kinds, each a kind of the next. A statement tells two chains' rules, in random order, then what two individuals are.

    Args:
        hops: how far questions reach. n_chains: of the rule base. sizes: items per chain: making, calibrating, evaluation.

    Raises:
        PromptError: a tokenizer that does not tell enough invented names apart by their first token.
    """
    length, draw = max(hops) + 1, random.Random(f"kinds {seed}")
    names = _told_apart(model, n_chains * length)
    chains = [names[i * length : (i + 1) * length] for i in range(n_chains)]
    individuals = [name.capitalize() for name in reversed(invented_names())]
    parts: list[tuple[Item, ...]] = []
    for n, start in zip(sizes, (0, 40, 80), strict=True):  # other individuals in each part
        who = individuals[start : start + 40]
        parts.append(tuple(_kind(draw, chains, i, hops, who) for i in range(n_chains) for _ in range(n)))
    concepts = tuple(chain[0] for chain in chains)
    rules = _implications([(a, b) for chain in chains for a, b in pairwise(chain)])
    return Domain(concepts, checked(rules, concepts), parts[0], parts[1], {CHAINS: parts[2]})


def _kind(draw: random.Random, chains: list[list[str]], own: int, hops: Sequence[int], who: list[str]) -> Item:
    other = draw.choice([i for i in range(len(chains)) if i != own])
    one, another = draw.sample(who, 2)
    told = [f"Every {a} is a {b}." for i in (own, other) for a, b in pairwise(chains[i])]
    draw.shuffle(told)
    statement = f"{' '.join(told)} {another} is a {chains[other][0]}. {one} is a {chains[own][0]}."
    asked = [
        Question(n, f"{statement} So {one} is also a", right, foil, f" {right}", f" {foil}")
        for n, right, foil in ((n, chains[own][n], chains[other][n]) for n in hops)
    ]
    return Item(statement, chains[own][0], tuple(asked))


def first_token(model: Model, text: str) -> int:
    ids: list[int] = model.tokenizer(text, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportAssignmentType]
    return ids[0]


def _told_apart(model: Model, n: int) -> list[str]:
    """The first ``n`` invented names with different first tokens."""
    found: dict[int, str] = {}
    for name in invented_names():
        token = first_token(model, f" {name}")
        if token != model.tokenizer.unk_token_id:
            found.setdefault(token, name)
        if len(found) == n:
            return list(found.values())
    raise PromptError(
        f"The tokenizer of {model.name} tells {len(found)} invented names apart by their first token, and {n} are needed: ask for "
        "fewer chains or hops."
    )


def _check_told_apart(model: Model, questions: Sequence[Question]) -> None:
    for one in questions:
        if first_token(model, one.right_text) == first_token(model, one.foil_text):
            raise PromptError(
                f"The tokenizer of {model.name} begins {one.right_text!r} and {one.foil_text!r} with one token: the answers cannot be "
                "told apart; use another model."
            )


def domains(lens: Lens, hops: Sequence[int], n_chains: int, sizes: tuple[int, int, int], seed: int) -> list[Domain]:
    """Both, in the order of the report."""
    return [kinds(lens.model, hops, n_chains, sizes, seed), places(lens.model, seed)]
