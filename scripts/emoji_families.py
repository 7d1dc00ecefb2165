"""Which emoji belong together: variants of one concept, and the concept families that the strict split keeps whole.

Two levels:

* A *concept* is what stays of an English name once tone, gender, hair and direction are taken away ("woman swimming:
  light skin tone" -> "swimming").
* A *family* is a set of concepts whose drawings or names are near-copies of one another: recoloured (hearts, apples,
  books), turned (arrows, pointing hands), counted (clock faces, keycaps), the face and the whole animal, an object and
  the person or sign that shows it. A family is never divided between train, val and test.

Three tables decide, in this order: `EXCEPTIONS`, `SUBGROUPS` (closed sets in which every member is a near-copy of the
next), and `RULES`, read from top to bottom: the first family with a matching term wins. A concept that nothing names is
a family of its own. A term matches whole words, with or without a plural s; `swim*` matches the beginning of a word,
`=ring` only the whole concept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
HAIR = ("red hair", "curly hair", "white hair", "blond hair", "bald", "beard")
PERSON_SUBGROUPS = frozenset(
    f"person{suffix}" for suffix in ("", "-gesture", "-role", "-fantasy", "-activity", "-sport", "-resting")
)

_WOMAN = re.compile(r"\b(woman|women|girl|princess|mermaid|mrs)\b", re.I)
_MAN = re.compile(r"\b(man|men|boy|prince|merman|santa)\b", re.I)
_NEUTRAL = re.compile(r"\b(person|people|child|merperson|mx)\b", re.I)
# Names in which the gender is not a separate word, brought to the form the neutral variant has.
_REWRITE = (
    (r"^mer(man|maid|person)$", "merperson"),
    (r"^(santa|mrs\.|mx) claus$", "claus"),
    (r"^(prince|princess|person with crown)$", "with crown"),
    (r"^(boy|girl|child)$", "child"),
    (r"^old(er)? (man|woman|person)$", "older person"),
    (r"^(man|woman|person)$", "person"),
    (r"^(breast-feeding)$", "feeding baby"),
)


@dataclass(frozen=True)
class Variant:
    """An English name taken apart. `tone` joins two tones by "+"; `gender` is woman, man, person, or None."""

    concept: str
    tone: str | None
    gender: str | None
    hair: str | None
    direction: str | None


def take_apart(name: str, subgroup: str) -> Variant:
    """Split an English CLDR name into its concept and what varies around it.

    Gender is read only where the emoji is one person (or people all alike): in couples, families, clothes and signs the
    words "man" and "woman" are part of the concept.
    """
    head, _, tail = name.partition(": ")
    details = tail.split(", ") if tail else []
    is_person = subgroup in PERSON_SUBGROUPS
    tones = [d.removesuffix(" skin tone") for d in details if d.endswith(" skin tone")]
    hair = next((d for d in details if d in HAIR), None) if is_person else None
    right = "facing right" in details
    rest = [d for d in details if not d.endswith(" skin tone") and d not in (hair, "facing right")]
    head = ": ".join([head, ", ".join(rest)]) if rest else head
    gender = _gender(head) if is_person else None
    concept = _without_gender(head) if is_person else head
    return Variant(concept, "+".join(tones) or None, gender, hair, "right" if right else None)


def _gender(head: str) -> str | None:
    woman, man = bool(_WOMAN.search(head)), bool(_MAN.search(head))
    if woman != man:
        return "woman" if woman else "man"
    return "person" if _NEUTRAL.search(head) else None


def _without_gender(head: str) -> str:
    lowered = head.lower()
    for pattern, concept in _REWRITE:
        if re.match(pattern, lowered):
            return concept
    words = re.sub(r"\b(wo)?m[ae]n\b|\b(person|people)\b", " ", head)
    return " ".join(words.split())


SUBGROUPS = {
    "country-flag": "country flag",
    "subdivision-flag": "country flag",
    "flag": "flag",
    "keycap": "keycap",
    "zodiac": "zodiac sign",
    "arrow": "arrow",
    "alphanum": "text button",
    "skin-tone": "skin tone",
    "gender": "gender sign",
    "math": "math sign",
    "heart": "heart",
    "family": "family",
}
"""Subgroup -> family, for closed sets."""

EXCEPTIONS: tuple[tuple[str, str], ...] = (
    ("envelope", "=love letter"),
    ("holding hands", "people holding hands, women holding hands, men holding hands, woman and man holding hands"),
    ("couple", "=kiss, kiss: *, couple with heart"),
    ("family", "family: *, =family"),
    ("arrow", "upwards button, downwards button, BACK arrow, fast up button, fast down button"),
    ("keycap", "=input numbers"),
    ("heart", "=heart suit"),
    ("skull", "pirate flag"),
)
"""Looked at before `SUBGROUPS`."""

RULES: tuple[tuple[str, str], ...] = (
    # Faces: one family per expression.
    ("cat", "cat"),  # before the expressions: all cat faces are one drawing with other eyes and mouths
    ("monkey", "monkey"),
    ("frown", "frowning face, confused, diagonal mouth, worried, anguished, sad but relieved, disappointed, pensive"),
    ("grin", "tears of joy, rolling on the floor, grinning, beaming"),
    ("tears", "crying, holding back tears, smiling face with tear, pleading"),
    ("kiss", "kissing, blowing a kiss, kiss mark, biting lip, =mouth"),
    ("tongue", "tongue, savoring, zany"),
    ("horns", "face with horns, goblin, ogre"),
    ("eyes in love", "heart-eyes, star-struck, smiling face with hearts"),
    ("anger", "enraged, angry face, steam from nose, symbols on mouth"),
    ("smirk", "smirking, unamused, rolling eyes, raised eyebrow, monocle, lying face"),
    ("face with glasses", "smiling face with sunglasses, nerd face, disguised face"),
    ("hug", "hugging, smiling face with open hands"),
    ("face with hand", "hand over mouth, peeking eye, shushing, thinking face, saluting, yawning"),
    ("shaking head", "head shaking, shaking face"),
    ("smile", "smil*, upside-down, winking, relieved face, melting, cowboy hat face, clown face"),
    ("weary", "weary, tired face, confounded, persevering"),
    ("blank face", "neutral face, expressionless, without mouth, dotted line face, zipper-mouth, grimacing, flushed"),
    ("open mouth", "face with open mouth, hushed, astonished, fearful, anxious, screaming, cold face, exploding head"),
    ("sleep", "sleepy, sleeping face, drooling, zzz, downcast, bags under eyes"),
    ("sick face", "nauseated, vomiting, sneezing, face with thermometer, medical mask, head-bandage, =thermometer"),
    ("dizzy", "crossed-out eyes, spiral eyes, woozy, =dizzy"),
    ("wind", "face in clouds, face exhaling, dashing away, wind face, leaf fluttering"),
    ("fire", "hot face, =fire, fireworks, firecracker, =bomb, sparkler, collision, comet, shooting star"),
    ("firefighting", "firefighter, fire engine, fire extinguisher"),
    ("skull", "skull"),
    ("alien", "alien*, flying saucer"),
    ("swirl", "pile of poo, soft ice cream, ice cream, shaved ice"),
    ("speech bubble", "speech *, thought balloon, anger bubble"),
    ("droplet", "droplet, drop of blood, water wave"),
    # Hands and body parts.
    ("card", "card index, card index dividers, credit card, identification card, admission ticket, ticket, =label"),
    ("thumbs", "thumbs up, thumbs down"),
    ("fist", "fist"),
    ("open hand", "waving hand, raised *hand, back of hand, splayed, vulcan, raising hands, clapping, folded hands"),
    ("sideways hand", "rightwards, leftwards, palm down, palm up, palms up, handshake, open hands"),
    ("finger sign", "index, middle finger, sign of the horns, OK hand, pinch*, victory, crossed fingers, love-you"),
    ("finger sign", "call me, heart hands"),
    ("arm or leg", "mechanical arm, mechanical leg, =leg, =foot, footprint, biceps"),
    ("ear", "=ear, ear with hearing aid"),
    ("eye", "=eye, =eyes"),
    ("lock", "locked, unlocked, key"),
    ("pen", "writing hand, pencil, pen, black nib, crayon, paintbrush, memo, artist"),
    ("phone", "selfie, mobile phone, vibration mode, telephone, pager, fax machine"),
    # People, with the things that their drawings hold.
    ("person", "=person, =child, older person, =baby, baby symbol, baby angel"),
    ("sad or angry person", "=frowning, =pouting"),
    ("gesturing", "gesturing NO, gesturing OK"),
    ("raising hand", "tipping hand, raising hand"),
    ("shrugging", "facepalming, shrugging"),
    ("wedding", "in tuxedo, with veil, =wedding, bouquet"),
    ("headwear", "turban, skullcap, headscarf"),
    ("officer", "police *, =guard, detective"),
    ("crown", "crown"),
    ("baby care", "pregnant, feeding baby, baby bottle, glass of milk"),
    ("worker", "construction, factory *, mechanic, rescue worker"),
    ("medicine", "health worker, scientist, stethoscope, lab coat, medical symbol"),
    ("school", "student, teacher, graduation cap, school"),
    ("computer", "office worker, technologist, laptop, desktop computer"),
    ("microphone", "singer, microphone"),
    ("farm and kitchen", "farmer, =cook, =cooking, shallow pan"),
    ("airplane", "pilot, airplane"),
    ("rocket", "astronaut, rocket"),
    ("judge", "=judge, balance scale"),
    ("superhero", "superhero, supervillain"),
    ("Christmas", "claus, christmas tree"),
    ("magic", "mage, genie, magic wand"),
    ("fairy", "elf, fairy"),
    ("merperson", "merperson"),
    ("undead", "vampire, zombie"),
    ("hair and massage", "massage, haircut, barber pole"),
    ("walking and shoes", "walking, running*, pedestrian, *shoe, boot, *sandal, ballet shoe, flat shoe"),
    ("wheelchair", "wheelchair"),
    ("standing", "white cane, =standing, =kneeling"),
    ("dancing", "dancing, levitating"),
    ("wrestling", "bunny ears, wrestling"),
    ("steam", "steamy room, hot springs"),
    ("bicycle", "biking, bicycle"),
    ("skyline", "sunrise, sunset, cityscape, night with stars, bridge at night, foggy, fog, milky way"),
    ("mountain", "climbing, mountain, mount fuji, volcano"),
    ("motorcycle", "motorcycle, motor scooter"),
    ("snow sport", "ski, skier, snowboarder, sled"),
    ("golf", "golf*, flag in hole"),
    ("boat", "rowing, canoe, boat, sailboat, speedboat, ship, ferry, passenger ship"),
    ("swimming", "swim*, water polo, surfing, diving, bikini, one-piece swimsuit"),
    ("ball game", "bouncing ball, basketball, handball, juggling, volleyball, soccer ball"),
    ("bat and ball", "baseball, softball, tennis, cricket game, hockey, lacrosse, ping pong, badminton"),
    ("rugby", "american football, rugby football"),
    ("bath", "taking bath, bathtub, shower"),
    ("bed", "in bed, bed, couch"),
    ("human pictogram", "silhouette, speaking head, restroom, men’s room, women’s room, water closet, elevator"),
    # Animals: face and whole body, and the recoloured relatives.
    ("hot dog", "hot dog"),
    ("dog", "dog, poodle, wolf, fox"),
    ("big cat", "tiger, leopard, lion"),
    ("horse", "horse, unicorn, zebra, donkey, moose, deer"),
    ("cattle", "cow, ox, water buffalo, bison"),
    ("pig", "pig, boar"),
    ("sheep and camel", "ram, ewe, goat, llama, camel"),
    ("computer mouse", "computer mouse, trackball, =keyboard"),
    ("rodent", "mouse, rat, hamster, rabbit, chipmunk, beaver"),
    ("bear", "bear, panda, koala"),
    ("elephant", "elephant, mammoth, rhinoceros, hippopotamus"),
    ("small mammal", "raccoon, badger, skunk, hedgehog, otter, sloth"),
    ("ape", "gorilla, orangutan"),
    ("chicken", "chick, chicken, rooster, turkey"),
    ("bird", "bird, dove, duck, goose, swan, eagle, phoenix, parrot, peacock, dodo, flamingo, owl"),
    ("playing card", "suit, playing cards, joker, mahjong, red envelope"),
    ("reptile", "dragon, sauropod, t-rex, crocodile, lizard"),
    ("whale", "whale, dolphin, shark, seal"),
    ("fish", "=fish, tropical fish, blowfish"),
    ("octopus", "octopus, squid, jellyfish"),
    ("crab", "crab, lobster, shrimp, scorpion"),
    ("insect", "beetle, =bug, cockroach, =ant, =cricket, =fly, mosquito, honeybee"),
    ("spider", "spider"),
    ("snake", "snake, worm, snail"),
    # Plants and food.
    ("flower", "rose, wilted, tulip, hibiscus, blossom, sunflower, =lotus, white flower, hyacinth, rosette"),
    ("tree", "tree, pine decoration"),
    ("leaf", "clover, shamrock, leaf, herb, seedling, potted plant, leafy green, sheaf of rice"),
    ("nest and egg", "nest, egg"),
    ("mushroom", "mushroom"),
    ("round fruit", "apple, pear, peach, cherries, tomato, mango"),
    ("citrus and melon", "lemon, lime, tangerine, melon, watermelon"),
    ("bread", "bread, flatbread, croissant, bagel, pretzel, burrito, taco, tamale, sandwich, hamburger"),
    ("long vegetable", "pepper, cucumber, eggplant"),
    ("root", "roasted sweet potato, potato, ginger root, root vegetable"),
    ("meat", "meat, poultry, bacon"),
    ("rice", "rice, bento, oden, dango"),
    ("bowl", "steaming bowl, pot of food, fondue, bowl with spoon, green salad, spaghetti"),
    ("cake", "birthday cake, shortcake, cupcake, custard, pie"),
    ("cookie", "cookie, doughnut, moon cake, chocolate bar"),
    ("candy", "candy, lollipop"),
    ("glass", "beer mug, clinking, tumbler, wine, cocktail, tropical drink, bottle with popping, sake, pouring"),
    ("cup", "teapot, teacup, hot beverage, bubble tea, cup with straw, mate, beverage box"),
    ("knife", "fork, spoon, kitchen knife, dagger, sword, chopsticks"),
    ("jar", "=jar, honey pot, amphora, funeral urn"),
    # Places, vehicles, sky.
    ("globe", "globe"),
    ("map", "map, compass"),
    ("landscape", "beach, desert island, desert, national park"),
    ("house", "house, hut, tent, circus tent, camping"),
    ("building", "post office, hospital, bank, hotel, store, building, factory"),
    ("castle", "castle, stadium"),
    ("place of worship", "church, mosque, hindu, synagogue, shinto, kaaba, worship"),
    ("fairground", "ferris wheel, roller coaster, playground slide"),
    ("train", "train, locomotive, railway, metro, light rail, station, tram, monorail, tramway, cableway"),
    ("bus", "bus, trolleybus, minibus, ambulance, bus stop"),
    ("car", "taxi, automobile, utility vehicle, racing car, rickshaw"),
    ("truck", "truck, lorry, tractor"),
    ("skate", "kick scooter, skateboard, skate"),
    ("traffic light", "traffic light, stop sign"),
    ("litter", "litter, littering, wastebasket"),
    ("drinking water", "potable water, non-potable water"),
    ("bell", "bell"),
    ("luggage", "luggage, baggage, customs, passport, briefcase"),
    ("hourglass", "hourglass"),
    ("clock", "clock, o’clock, *-thirty, watch, stopwatch"),
    ("sun and cloud", "sun, bright button, dim button, cloud, rainbow"),
    ("moon", "moon"),
    ("star", "star, sparkle, asterisk, snowflake, star of david, star and crescent"),
    ("umbrella", "umbrella"),
    ("snowman", "snowman"),
    # Activities.
    ("party", "party popper, partying, confetti"),
    ("medal", "medal, trophy"),
    ("ribbon", "ribbon"),
    ("doll", "dolls"),
    ("video game", "video game, joystick"),
    ("circle", "bullseye, hollow red circle, radio button, circle, record button"),
    ("square", "square"),
    ("diamond", "diamond, gem stone, =ring"),
    ("ruler", "ruler"),
    ("triangle", "triangle, triangular"),
    ("thread", "thread, yarn, knot"),
    # Objects.
    ("glasses", "glasses, sunglasses, goggles"),
    ("clothes", "t-shirt, coat, vest, kimono, dress, sari, clothes, jeans, shorts, briefs, uniform, scarf, necktie"),
    ("hat", "hat, cap, helmet"),
    ("bag", "purse, handbag, bag, backpack, clutch bag"),
    ("speaker", "speaker, megaphone, loudspeaker"),
    ("musical note", "musical score, musical note"),
    ("control knobs", "level slider, control knobs"),
    ("string instrument", "guitar, banjo, violin, harp"),
    ("drum", "=drum, long drum, maracas"),
    ("wind instrument", "trumpet, saxophone, postal horn, flute"),
    ("battery", "battery, electric plug"),
    ("disk", "disk, dvd"),
    ("camera", "film, camera, videocassette, cinema, clapper board"),
    ("television", "television, radio"),
    ("magnifying glass", "magnifying glass"),
    ("lamp", "light bulb, flashlight"),
    ("lantern", "lantern, candle, diya lamp"),
    ("book", "book, notebook, ledger, notepad"),
    ("page", "bookmark, page, scroll, newspaper, receipt, clipboard"),
    ("chart", "chart"),
    ("money", "banknote, money, money-mouth, coin, dollar sign, currency exchange"),
    ("envelope", "envelope, e-mail"),
    ("box", "tray, package, card file box, ballot box"),
    ("mailbox", "mailbox, postbox"),
    ("calendar", "calendar"),
    ("folder", "folder, file cabinet"),
    ("pushpin", "pushpin"),
    ("link", "paperclip, link, chain"),
    ("tool", "hammer, axe, =pick, wrench, screwdriver, shovel, saw"),
    ("wheel", "gear, wheel, nut and bolt"),
    ("medicine cabinet", "syringe, pill, adhesive bandage"),
    ("laboratory", "test tube, alembic, petri dish, microbe"),
    ("antenna", "antenna, satellite, wireless"),
    ("smoking", "cigarette, smoking"),
    ("grave", "coffin, headstone"),
    ("amulet", "nazar, hamsa, prayer beads"),
    # Signs.
    ("prohibition sign", "no entry, prohibited, no one under eighteen"),
    ("warning sign", "warning, children crossing, radioactive, biohazard"),
    ("cross", "latin cross, orthodox cross"),
    ("check or cross mark", "check, cross mark"),
    ("punctuation mark", "exclamation, question"),
    ("media button", "button, recycling symbol"),
    ("loop", "curly loop"),
    ("mark", "copyright, registered, trade mark"),
    ("dash", "wavy dash, part alternation"),
)


def _pattern(terms: str) -> re.Pattern[str]:
    alternatives = []
    for term in terms.split(", "):
        exact, words = term.startswith("="), re.escape(term.removeprefix("=")).replace(r"\*", r"[\w-]*")
        alternatives.append(f"^{words}$" if exact else rf"(?<![\w-]){words}s?(?![\w-])")
    return re.compile("|".join(alternatives), re.I)


_EXCEPTIONS = tuple((family, _pattern(terms)) for family, terms in EXCEPTIONS)
_RULES = tuple((family, _pattern(terms)) for family, terms in RULES)


def family_of(concept: str, subgroup: str) -> str:
    """The family of a concept (see the module docstring)."""
    named = next((family for family, pattern in _EXCEPTIONS if pattern.search(concept)), None)
    if named or subgroup in SUBGROUPS:
        return named or SUBGROUPS[subgroup]
    return next((family for family, pattern in _RULES if pattern.search(concept)), concept)
