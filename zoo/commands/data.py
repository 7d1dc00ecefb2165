"""Look at the packaged data; write data of your own as tar shards, all of it or an even choice.

zoo data show emoji                                  counts, and a contact sheet of the test split
zoo data show emoji --split train --out sheet.png    the same for another split, into another file
zoo data shard photos/ --out shards/                 pictures with captions -> tar shards (WebDataset layout)
zoo data shard 'cc3m/*.parquet' --out shards/ --image-size 256
zoo data curate 'cc3m/*.parquet' --concepts labels.txt --per-concept 500 --out even/
                                                     pairs that cover the concepts of a word list evenly, as tar shards
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import UnknownNameError, ZooError
from zoo.files import user_path
from zoo.tables import printable

if TYPE_CHECKING:
    from zoo.data.pairs import RecordSource
    from zoo.data.sources.emoji import Emoji
    from zoo.types import RetrievalTask

Rows = list[Sequence[object]]
EXIT_SOME_BAD = 3  # as of `zoo embed`
NAMED = 5  # records that are named one by one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One subcommand per thing that can be done with data."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="counts per split, category, language and task, and a contact sheet")
    show.add_argument("name", help="the data set: emoji")
    show.add_argument("--split", default="test", help="train, val or test: whose tasks and pictures (default: test)")
    show.add_argument("--out", type=user_path, metavar="FILE", help="the contact sheet (default: NAME-SPLIT.png)")
    show.add_argument("--count", type=int, default=48, metavar="N", help="emoji on the contact sheet; 0: no sheet")
    show.set_defaults(action=_show)
    shard = actions.add_parser("shard", help="write pictures with captions as tar shards; a stopped run goes on")
    _add_shard_arguments(shard)
    shard.set_defaults(action=_shard)
    curate = actions.add_parser("curate", help="the same for a choice of pairs that covers concepts evenly")
    _add_shard_arguments(curate)
    curate.add_argument(
        "--concepts",
        type=user_path,
        required=True,
        metavar="FILE",
        help="a line each: NAME, or NAME: WORD, SOME PHRASE, ...",
    )
    curate.add_argument(
        "--per-concept", type=int, required=True, metavar="N", help="pairs that each concept is to have"
    )
    curate.add_argument("--seed", type=int, default=0, metavar="N", help="which pairs are drawn (default: 0)")
    curate.set_defaults(action=_curate)


def _add_shard_arguments(shard: argparse.ArgumentParser) -> None:
    shard.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a folder of pictures, .parquet, .jsonl or .tar files, the folder of a saved Hugging Face data set, "
        "emoji[:SPLIT]",
    )
    shard.add_argument("--out", type=user_path, required=True, metavar="FOLDER", help="for the shards")
    shard.add_argument("--size-mb", type=int, default=256, metavar="N", help="of a shard (default: 256)")
    shard.add_argument("--image-size", type=int, metavar="N", help="shrink pictures to a shorter side of N pixels")
    shard.add_argument(
        "--captions", choices=("file", "folder"), default="file", help="of a folder: text files, or names of folders"
    )
    shard.add_argument("--image", default="image", metavar="COLUMN", help="of a table (default: image)")
    shard.add_argument(
        "--caption", default="", metavar="NAME", help="column of a table (caption), or txt or json.FIELD of tar shards"
    )
    shard.add_argument("--image-id", default="", metavar="NAME", help="what names a picture that several records show")


def run(args: argparse.Namespace) -> int:
    """Run the chosen subcommand."""
    action: Callable[[argparse.Namespace], int] = args.action
    return action(args)


def _show(args: argparse.Namespace) -> int:
    if args.name not in _SHOW:
        raise UnknownNameError("data set", args.name, _SHOW, f"(there are {', '.join(_SHOW)})")
    return _SHOW[args.name](args)


def _shard(args: argparse.Namespace) -> int:
    opened = _opened(args)
    return _write_shards(opened, args, {}, opened)


def _curate(args: argparse.Namespace) -> int:
    from zoo.data.curation import Chosen, captions_of, curate, read_concepts, write_counts

    concepts, sources = read_concepts(args.concepts), _opened(args)
    found = curate(captions_of(sources), concepts, args.per_concept, args.seed)
    choice = {"concepts": concepts.fingerprint, "per_concept": args.per_concept, "seed": args.seed}
    code = _write_shards([Chosen(sources, found.rows)], args, choice, sources)
    counts = write_counts(found, concepts, args.out)
    whole = sum(count >= args.per_concept for count in found.kept)
    none = sum(not count for count in found.available)
    print(f"{len(found.rows):,} of {sum(map(len, sources)):,} pairs were chosen for {len(concepts):,} concepts:")
    print(
        f"  {whole:,} have {args.per_concept:,} or more, {len(concepts) - whole - none:,} fewer, {none:,} none; {counts}"
    )
    return code


def _opened(args: argparse.Namespace) -> list[RecordSource]:
    from zoo.data.shard_inputs import open_records

    return [open_records(place, **_fields(args)) for place in args.sources]


def _fields(args: argparse.Namespace) -> dict[str, Any]:
    return {"captions": args.captions, "image": args.image, "caption": args.caption, "image_id": args.image_id}


def _write_shards(
    sources: Sequence[RecordSource], args: argparse.Namespace, choice: dict[str, Any], opened: Sequence[RecordSource]
) -> int:
    """Write all records of `sources`, which read `opened`; `choice` says how they were chosen, for a run that goes on."""
    from zoo.data.shards import MANIFEST, write_shards
    from zoo.progress import counting

    total = sum(map(len, sources))
    with counting(total, "records", show=sys.stderr.isatty()) as progress:
        written = write_shards(
            sources,
            args.out,
            shard_bytes=args.size_mb << 20,
            image_size=args.image_size,
            options={"from": args.sources, **_fields(args), **choice},
            progress=progress,
        )
    if written.before:
        print(f"{written.before:,} of {len(written.shards):,} shards were there before")
    size = sum(shard.bytes for shard in written.shards)
    print(
        f"{written.records:,} of {total:,} records in {len(written.shards):,} shards, {size / 1e6:,.1f} MB: {args.out}"
    )
    unlisted = sum(source.left_out.lost for source in opened if hasattr(source, "left_out"))
    if unlisted:
        print(
            f"{unlisted:,} more members or records were not usable as files were opened: the warnings above name them"
        )
    if written.left_out:
        print(f"{len(written.left_out):,} records could not be used ({args.out / MANIFEST} names them all):")
        print("\n".join(f"  {printable(message)}" for message in written.left_out[:NAMED]))
    return EXIT_SOME_BAD if unlisted or written.left_out else 0


def _show_emoji(args: argparse.Namespace) -> int:
    from zoo.data.sources.emoji import PACKAGED, SPLITS, STYLES, check_names, read_emoji

    check_names("split", (args.split,), SPLITS)
    if args.count < 0:
        raise ZooError(f"--count {args.count}: give a number of emoji, or 0 for no contact sheet")
    emoji = read_emoji(languages="all")
    print(
        f"emoji: {len(emoji):,} emoji, {len(emoji) * len(STYLES):,} drawings of 64 x 64 with alpha in the styles "
        f"{' and '.join(STYLES)}, {len(emoji[0].names)} languages\n"
        f"{PACKAGED} ({PACKAGED.stat().st_size / 1e6:.1f} MB)\n"
        f"Noto Emoji (Google, Apache-2.0), Twemoji (Twitter, CC-BY-4.0), Unicode CLDR: see {_notice(PACKAGED)}\n"
    )
    _print_emoji_counts(emoji, args.split)
    if args.count:
        _write_emoji_sheet(emoji, args)
    return 0


def _notice(packaged: Path) -> Path:
    return packaged.with_name("emoji-NOTICE.md")


def _print_emoji_counts(emoji: Sequence[Emoji], split: str) -> None:
    from zoo.data.sources.emoji import SPLITS, known_languages
    from zoo.data.sources.emoji_tasks import EmojiTasks

    parts = {name: [one for one in emoji if one.split == name] for name in SPLITS}
    _print_table(
        "splits (by concept family: no family is in two of them)",
        ("split", "emoji", "share", "untoned", "concepts", "families"),
        [
            (
                name,
                len(part),
                f"{len(part) / len(emoji):.1%}",
                len({one.base for one in part}),
                len({one.concept for one in part}),
                len({one.family for one in part}),
            )
            for name, part in parts.items()
        ],
    )
    for field in ("group", "tone", "gender", "hair", "direction"):
        _print_table(f"emoji per {field}", (field, *SPLITS, "all"), _per_split(field, parts))
    languages = [
        (
            language,
            len({one.names[language] for one in emoji}),
            len({tag for one in emoji for tag in one.tags[language]}),
            f"{sum(len(one.tags[language]) for one in emoji) / len(emoji):.1f}",
        )
        for language in known_languages()
    ]
    _print_table("languages", ("language", "distinct names", "distinct tags", "tags per emoji"), languages)
    _print_table(f"training records of '{split}'", ("source", "records"), _emoji_records(split))
    which = ("text_to_image", "image_to_text", "group", "subgroup", "style", "instructions", "composed")
    _print_table(
        f"evaluation tasks of '{split}' (chance: a random order has a right one first, or among the first ten)",
        ("task", "queries", "candidates", "chance @1", "chance @10"),
        [_task_row(task) for task in EmojiTasks(split, which).tasks()],
    )


def _per_split(field: str, parts: dict[str, list[Emoji]]) -> Rows:
    def value(one: Emoji) -> str:
        text: str = getattr(one, field) or "-"
        return "two tones" if field == "tone" and "+" in text else text

    counts = {name: Counter(map(value, part)) for name, part in parts.items()}
    names: Iterable[str] = dict.fromkeys(value(one) for part in parts.values() for one in part)
    return [
        (name, *(count[name] for count in counts.values()), sum(c[name] for c in counts.values())) for name in names
    ]


def _emoji_records(split: str) -> Rows:
    from zoo.data.sources.emoji import EmojiRetrieval
    from zoo.data.sources.emoji_edits import EmojiComposed
    from zoo.data.sources.emoji_questions import EmojiInstructions

    edits = EmojiComposed(split)
    kinds = Counter(triplet.kind for triplet in edits.triplets)
    return [
        ("EmojiRetrieval", len(EmojiRetrieval(split))),
        ("EmojiRetrieval, per: base", len(EmojiRetrieval(split, per="base"))),
        ("EmojiInstructions", len(EmojiInstructions(split))),
        ("EmojiComposed", len(edits)),
        *((f"EmojiComposed, {kind}", count) for kind, count in kinds.items()),
    ]


def _task_row(task: RetrievalTask) -> Sequence[object]:
    at = [f"{chance(task, k):.2%}" for k in (1, 10)]
    return (task.name, len(task.queries), len(task.candidates), *at)


def chance(task: RetrievalTask, k: int) -> float:
    """Share of queries for which a random order of all candidates has a relevant one among the first k."""
    size = len(task.candidates)
    k = min(k, size)
    by_relevant = Counter(len(relevant) for relevant in task.relevant)
    missed = sum(count * comb(size - relevant, k) / comb(size, k) for relevant, count in by_relevant.items())
    return 1 - missed / len(task.queries)


def _print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*header, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*(Text(f"{value:,}" if isinstance(value, int) else str(value)) for value in row))
    console = Console()
    console.print(Text(title, style="bold"))
    console.print(table)
    console.print()


def _write_emoji_sheet(emoji: Sequence[Emoji], args: argparse.Namespace) -> None:
    from zoo.data.contact_sheet import Cell, contact_sheet, save_picture
    from zoo.data.sources.emoji import STYLES
    from zoo.data.sources.emoji_questions import one_tone_each

    part = one_tone_each([one for one in emoji if one.split == args.split])
    count = min(args.count, len(part))
    chosen = [part[i * len(part) // count] for i in range(count)]
    cells = [Cell(tuple(one.drawings[style] for style in STYLES), one.names["en"]) for one in chosen]
    path = args.out or Path(f"{args.name}-{args.split}.png")
    title = f"{args.name}, {args.split}: {count} of {len(part)} (left {STYLES[0]}, right {STYLES[1]})"
    save_picture(contact_sheet(cells, title=title), path)
    print(f"contact sheet: {path}")


_SHOW: dict[str, Callable[[argparse.Namespace], int]] = {"emoji": _show_emoji}
