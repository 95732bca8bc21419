"""Tasks that a language model of 135M parameters can do, each of more than 100 items, drawn by a seed from templates.

An item is a prompt to be completed, and the one answer that is right with the line break that ends it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

ITEMS, EXAMPLES = 120, 4
NAMES = ("Anna", "Tom", "Maria", "Peter", "Lucy", "David", "Sarah", "Jack", "Emma", "Paul", "Helen", "Mark")
CITIES = ("Paris", "London", "Rome", "Berlin", "Madrid", "Vienna", "Tokyo", "Boston", "Chicago", "Dublin", "Oslo")
THINGS = ("hat", "car", "bag", "coat", "bike", "house", "cup", "book", "door", "chair", "shirt", "boat")
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink", "orange", "purple")
CAPITALS = """
France Paris, Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, Austria Vienna, Poland Warsaw, Hungary
Budapest, Greece Athens, Turkey Ankara, Russia Moscow, Ukraine Kiev, Sweden Stockholm, Norway Oslo, Finland Helsinki,
Belgium Brussels, Ireland Dublin, Scotland Edinburgh, Wales Cardiff, England London, Switzerland Bern, Romania
Bucharest, Bulgaria Sofia, Serbia Belgrade, Croatia Zagreb, Slovenia Ljubljana, Slovakia Bratislava, Estonia Tallinn,
Latvia Riga, Lithuania Vilnius, Iceland Reykjavik, Denmark Copenhagen, Netherlands Amsterdam, Albania Tirana, Malta
Valletta, Cyprus Nicosia, Egypt Cairo, Morocco Rabat, Algeria Algiers, Tunisia Tunis, Libya Tripoli, Sudan Khartoum,
Kenya Nairobi, Uganda Kampala, Ethiopia Addis_Ababa, Ghana Accra, Senegal Dakar, Nigeria Abuja, Angola Luanda, Zambia
Lusaka, Zimbabwe Harare, Mozambique Maputo, Namibia Windhoek, Rwanda Kigali, Somalia Mogadishu, Mali Bamako, Niger
Niamey, Cameroon Yaounde, China Beijing, Japan Tokyo, India New_Delhi, Pakistan Islamabad, Bangladesh Dhaka, Nepal
Kathmandu, Bhutan Thimphu, Thailand Bangkok, Vietnam Hanoi, Laos Vientiane, Indonesia Jakarta, Malaysia Kuala_Lumpur,
Philippines Manila, Mongolia Ulaanbaatar, Iran Tehran, Iraq Baghdad, Syria Damascus, Lebanon Beirut, Jordan Amman,
Qatar Doha, Oman Muscat, Bahrain Manama, Yemen Sanaa, Afghanistan Kabul, Uzbekistan Tashkent, Georgia Tbilisi, Armenia
Yerevan, Azerbaijan Baku, Canada Ottawa, Mexico Mexico_City, Cuba Havana, Jamaica Kingston, Haiti Port-au-Prince,
Panama Panama_City, Guatemala Guatemala_City, Honduras Tegucigalpa, Nicaragua Managua, Colombia Bogota, Venezuela
Caracas, Ecuador Quito, Peru Lima, Bolivia La_Paz, Chile Santiago, Argentina Buenos_Aires, Uruguay Montevideo,
Paraguay Asuncion, Brazil Brasilia, Australia Canberra, New_Zealand Wellington, Fiji Suva, Taiwan Taipei, Cambodia
Phnom_Penh, Israel Jerusalem, Kuwait Kuwait_City
"""
GOOD = ("wonderful", "great", "excellent", "delicious", "friendly", "beautiful", "perfect", "amazing", "lovely", "fun")
BAD = ("terrible", "awful", "horrible", "disgusting", "rude", "ugly", "broken", "boring", "dirty", "useless")
SUBJECTS = ("food", "hotel", "film", "staff", "service", "book", "trip", "room", "concert", "phone", "meal", "show")
FEELINGS = ("The {} was {}.", "I think the {} is {}.", "What a {1} {0}!", "My {} was really {}.")


class Item(NamedTuple):
    """The examples before a question, the question, and what completes both rightly."""

    shown: str
    asked: str
    answer: str


Drawn = Callable[[random.Random], tuple[str, str]]


def facts(rng: random.Random) -> tuple[str, str]:
    """A city, a colour or a name, to be found in a sentence."""
    name, city, thing, colour = (rng.choice(words) for words in (NAMES, CITIES, THINGS, COLOURS))
    asked = rng.choice(
        (
            (f"Where does {name} live?", city),
            (f"What colour is the {thing}?", colour),
            (f"Who lives in {city}?", name),
        )
    )
    return f"{name} lives in {city} and has a {colour} {thing}. {asked[0]}", asked[1]


def feelings(rng: random.Random) -> tuple[str, str]:
    """Whether a short review is positive or negative."""
    answer, words = rng.choice((("positive", GOOD), ("negative", BAD)))
    return rng.choice(FEELINGS).format(rng.choice(SUBJECTS), rng.choice(words)), answer


def capitals() -> list[tuple[str, str]]:
    """A country's capital, known by heart."""
    pairs = [pair.split() for pair in CAPITALS.replace("\n", " ").split(",")]
    return [(f"What is the capital of {country.replace('_', ' ')}?", city.replace("_", " ")) for country, city in pairs]


def items(pairs: Sequence[tuple[str, str]]) -> list[Item]:
    """Questions and answers as items, after the same examples, which are none of them."""
    form = "Q: {}\nA:"
    shown = "".join(f"{form.format(question)} {answer}\n" for question, answer in pairs[:EXAMPLES])
    return [Item(shown, form.format(question), f" {answer}\n") for question, answer in pairs[EXAMPLES:]]


def tasks() -> Mapping[str, list[Item]]:
    """All tasks by name."""
    rng = random.Random(0)

    def distinct(drawn: Drawn) -> list[tuple[str, str]]:
        found: dict[str, str] = {}
        while len(found) < ITEMS + EXAMPLES:
            question, answer = drawn(rng)
            found.setdefault(question, answer)
        return list(found.items())

    def shuffled(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        return rng.sample(pairs, len(pairs))

    return {
        "find a fact": items(distinct(facts)),
        "sentiment": items(distinct(feelings)),
        "capitals": items(shuffled(capitals())),
    }
