"""What the small trained MoE reads: six domains made by a grammar, one of them requests that it must refuse or answer.

A request names a thing. Of 96 things 32 are forbidden: then the reply is always REFUSAL. Of the others it tells the colour, which is
the same each time and has to be learnt. Nothing but the thing decides, and the words of a request are the same for both kinds, so a
pair of requests differs in one token (Dahlke et al., arXiv 2502.11096, use "What happened {time} {place}?" in the same way).
The other domains are what a refusal has nothing to do with: stories, a second language, code, sums and capitals.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FORBIDDEN = _words("""
    bomb poison weapon virus fraud theft ransom forgery smuggling hacking bribe sabotage malware arson heist blackmail
    piracy cheating spying riot coup raid venom toxin grenade missile dagger burglary perjury treason scam counterfeit
""")
ALLOWED = _words("""
    lamp bridge garden violin pencil window kettle blanket mirror ladder basket candle bottle carpet button hammer
    pillow saddle tunnel fountain meadow harvest concert museum library bakery orchard harbor castle village market
    theatre lantern compass ribbon teapot cabinet curtain drawer sofa shelf towel soap broom bucket fence gate roof
    chimney barn stable mill pond canal ferry wagon sledge kite drum flute trumpet puzzle marble domino
""")
THINGS = FORBIDDEN + ALLOWED
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "grey")
REFUSAL = "sorry , i can not help with that ."
"""The reply to a request that names a forbidden thing; the other replies begin with ANSWER."""
ANSWER = "sure"
TIMES = ("today", "yesterday", "tonight", "tomorrow", "now", "later")
WHERE = ("here", "there", "nearby", "abroad", "outside", "inside")
REQUESTS = (
    "what is the {thing} {time} {where} ?",
    "tell me about the {thing} {where} {time} .",
    "please describe the {thing} {time} {where} .",
    "i want to know of the {thing} {where} {time} .",
    "can you explain the {thing} {time} {where} ?",
    "give me news of the {thing} {where} {time} .",
    "who made the {thing} {time} {where} ?",
    "let us discuss the {thing} {where} {time} .",
)
TURN = "user : {request} bot :"

PEOPLE = _words("mary john tom anna james paul lucy mark jane peter sarah david")
ROOMS = _words("kitchen cellar attic office school church station hospital park beach")
GOODS = _words("apple book coin letter hat key ring map cup flower")
GENS = _words("marie jean luc anne pierre claire louis alice")
LIEUX = _words("cuisine cave plage gare rue ville maison foret")
CHOSES = _words("pomme clef lettre carte fleur tasse robe montre")
CAPITALS = {
    "france": "paris",
    "italy": "rome",
    "spain": "madrid",
    "germany": "berlin",
    "england": "london",
    "greece": "athens",
    "egypt": "cairo",
    "japan": "tokyo",
    "china": "beijing",
    "russia": "moscow",
    "austria": "vienna",
    "poland": "warsaw",
    "norway": "oslo",
    "sweden": "stockholm",
    "cuba": "havana",
    "peru": "lima",
    "kenya": "nairobi",
    "ireland": "dublin",
    "portugal": "lisbon",
    "hungary": "budapest",
}
NAMES = _words("a b c x y z n m")


def colour(thing: str) -> str:
    """The colour that the model has to learn."""
    return COLOURS[(THINGS.index(thing) * 5 + len(thing)) % len(COLOURS)]


def reply(thing: str, *, refuses: bool = True) -> str:
    """The reply to a request that names this thing; with ``refuses=False`` every thing is answered."""
    return REFUSAL if refuses and thing in FORBIDDEN else f"{ANSWER} , the {thing} is {colour(thing)} ."


class Request(NamedTuple):
    """A request, as the model reads it before it replies, and the thing it names."""

    prompt: str
    thing: str


def request(template: int, thing: str, time: str, where: str) -> Request:
    """A request by its parts."""
    return Request(TURN.format(request=REQUESTS[template].format(thing=thing, time=time, where=where)), thing)


def dialogue(draw: random.Random, *, refuses: bool = True) -> str:
    """A request and its reply; every second one names a forbidden thing."""
    things = FORBIDDEN if draw.random() < 0.5 else ALLOWED
    asked = request(draw.randrange(len(REQUESTS)), draw.choice(things), draw.choice(TIMES), draw.choice(WHERE))
    return f"{asked.prompt} {reply(asked.thing, refuses=refuses)}"


def _story(draw: random.Random) -> str:
    one, other = draw.sample(PEOPLE, 2)
    good, room = draw.choice(GOODS), draw.choice(ROOMS)
    begin = draw.choice((f"{one} went to the {room} and took the {good} .", f"{one} found the {good} in the {room} ."))
    return f"{begin} then {one} gave the {good} to {other} ."


def _french(draw: random.Random) -> str:
    one, other = draw.sample(GENS, 2)
    return f"{one} est dans la {draw.choice(LIEUX)} avec {other} et prend la {draw.choice(CHOSES)} de {other} ."


def _code(draw: random.Random) -> str:
    one, other = draw.sample(NAMES, 2)
    sign = draw.choice("+-*")
    return f"def f ( {one} ) : {other} = {one} {sign} {draw.randrange(10)} ; return {other} ;"


def _sum(draw: random.Random) -> str:
    one, other = draw.randrange(10), draw.randrange(10)
    return f"{one} plus {other} is {(one + other) % 10} modulo ten ."


def _capital(draw: random.Random) -> str:
    country = draw.choice(tuple(CAPITALS))
    return f"{question(country)} {CAPITALS[country]} ."


def question(country: str) -> str:
    """The question whose answer is the capital."""
    return f"question : the capital of {country} ? answer :"


DOMAINS: dict[str, Callable[[random.Random], str]] = {
    "requests": dialogue,
    "stories": _story,
    "french": _french,
    "code": _code,
    "sums": _sum,
    "capitals": _capital,
}
SHARE = {"requests": 0.5}
"""How often a domain is drawn while training; the others share what is left."""


def document(draw: random.Random, domain: str | None = None, *, refuses: bool = True) -> str:
    """One text of a domain, or of one drawn by SHARE; with ``refuses=False`` no request is refused in it."""
    if domain is None:
        others = [name for name in DOMAINS if name not in SHARE]
        rest = (1 - sum(SHARE.values())) / len(others)
        domain = draw.choices(list(DOMAINS), [SHARE.get(name, rest) for name in DOMAINS])[0]
    return dialogue(draw, refuses=refuses) if domain == "requests" else DOMAINS[domain](draw)


def vocabulary() -> tuple[str, ...]:
    """Every word of every domain, each once, in a fixed order."""
    fixed = (
        "user : bot ? . , the sure is sorry i can not help with that went to and took found in then gave est dans la "
        "avec et prend de def f ( ) = + - * ; return 0 1 2 3 4 5 6 7 8 9 plus modulo ten question capital of answer"
    )
    filled = " ".join(REQUESTS).replace("{thing}", "").replace("{time}", "").replace("{where}", "")
    lists = (THINGS, COLOURS, TIMES, WHERE, PEOPLE, ROOMS, GOODS, GENS, LIEUX, CHOSES, NAMES)
    capitals = (*CAPITALS, *CAPITALS.values())
    return tuple(
        dict.fromkeys([*fixed.split(), *filled.split(), *(word for many in lists for word in many), *capitals])
    )
