"""What makes up a batch, and that it depends on nothing but (seed, epoch, number)."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from zoo.data.sampler import Draw, HomogeneousBatches
from zoo.data.source import Source
from zoo.errors import RecipeError, UnknownNameError
from zoo.types import Item, Sample


class Numbers(Source):
    """Records that are told apart by their index alone."""

    def __init__(self, name: str, count: int) -> None:
        self.name, self.count = name, count

    def __len__(self) -> int:
        return self.count

    def draw(self, index: int, rng: random.Random) -> Sample:
        return Sample(str(index), {"query": Item(text=str(index))})


class Keyed(Numbers):
    """Records whose targets repeat: `keys` holds one per record."""

    def __init__(self, name: str, keys: list[str]) -> None:
        super().__init__(name, len(keys))
        self.keys = keys

    def duplicate_key(self, index: int) -> str:
        return self.keys[index]


def epoch(batches: HomogeneousBatches, number: int = 0, start: int = 0) -> list[list[Draw]]:
    batches.seek(number, start)
    return list(batches)


def records(batches: list[list[Draw]]) -> list[tuple[int, int]]:
    return [(d.source, d.index) for batch in batches for d in batch]


def test_an_epoch_uses_every_record_once_in_batches_of_one_source() -> None:
    batches = HomogeneousBatches([Numbers("a", 40), Numbers("b", 24), Numbers("c", 9)], batch_size=8)
    drawn = epoch(batches)
    assert len(drawn) == len(batches) == 5 + 3 + 1
    assert all(len(batch) == 8 and len({d.source for d in batch}) == 1 for batch in drawn)
    counts = Counter(records(drawn))
    assert max(counts.values()) == 1
    assert {(0, i) for i in range(40)} | {(1, i) for i in range(24)} <= counts.keys()


def test_what_is_left_over_changes_with_the_epoch() -> None:
    batches = HomogeneousBatches([Numbers("a", 19)], batch_size=8)
    left = [set(range(19)) - {i for _, i in records(epoch(batches, e))} for e in range(60)]
    assert all(len(some) == 3 for some in left)
    assert set.union(*left) == set(range(19))


def test_sources_are_mixed_over_the_epoch() -> None:
    order = [batch[0].source for batch in epoch(HomogeneousBatches([Numbers("a", 400), Numbers("b", 400)], 8))]
    assert order != sorted(order)
    assert {0, 1} == set(order[:20])


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def made(seed: int) -> HomogeneousBatches:
        return HomogeneousBatches([Numbers("a", 50), Keyed("b", ["x", "y"] * 20)], batch_size=4, seed=seed)

    first = epoch(made(1), 3)
    again = made(1)
    epoch(again, 7)  # what was drawn before does not matter
    assert epoch(again, 3) == first
    assert epoch(made(1), 4) != first
    assert epoch(made(2), 3) != first


@pytest.mark.parametrize("start", [1, 7, 19, 20])
def test_a_pass_that_starts_late_gives_the_rest(start: int) -> None:
    batches = HomogeneousBatches([Numbers("a", 50), Keyed("b", list("xxyyz") * 8)], batch_size=4, homogeneous=2)
    whole = epoch(batches, 2)
    assert epoch(batches, 2, start) == whole[start:]
    assert len(batches) == len(whole)


def test_a_sample_s_seed_depends_on_run_epoch_source_and_record_alone() -> None:
    def seeds(number: int, world: int, seed: int = 0) -> dict[tuple[int, int], int]:
        sources = [Numbers("a", 32), Numbers("b", 32)]
        ranks = [HomogeneousBatches(sources, 8 // world, seed, None, None, r, world) for r in range(world)]
        return {(d.source, d.index): d.seed for rank in ranks for batch in epoch(rank, number) for d in batch}

    assert seeds(0, 1) == seeds(0, 2)
    assert not set(seeds(0, 1).values()) & set(seeds(1, 1).values())
    assert not set(seeds(0, 1).values()) & set(seeds(0, 1, seed=1).values())
    assert len(set(seeds(0, 1).values())) == 64


@pytest.mark.parametrize("homogeneous", [None, 2])
def test_ranks_take_equal_slices_of_the_batch_that_one_process_would_have(homogeneous: int | None) -> None:
    sources = [Numbers("a", 64), Keyed("b", list("abcd") * 12)]
    together = homogeneous and homogeneous * 2
    joined = epoch(HomogeneousBatches(sources, 8, homogeneous=together), 5)
    ranks = [epoch(HomogeneousBatches(sources, 4, homogeneous=homogeneous, rank=r, world_size=2), 5) for r in (0, 1)]
    assert len(ranks[0]) == len(ranks[1]) == len(joined)
    for whole, one, two in zip(joined, *ranks, strict=True):
        assert len(one) == len(two) == 4
        assert sorted(map(str, whole)) == sorted(map(str, one + two))
        assert [d.source for d in one] == [d.source for d in two], "every rank sees the same mix of sources"


def test_groups_of_a_batch_may_come_from_several_sources() -> None:
    batches = HomogeneousBatches([Numbers("a", 400), Numbers("b", 400)], batch_size=8, homogeneous=4)
    drawn = epoch(batches)
    assert all(len({d.source for d in batch[half : half + 4]}) == 1 for batch in drawn for half in (0, 4))
    assert any(len({d.source for d in batch}) == 2 for batch in drawn)
    assert Counter(records(drawn)) == Counter({(s, i): 1 for s in (0, 1) for i in range(400)})


@pytest.mark.parametrize("homogeneous", [None, 4])
def test_equal_keys_do_not_meet_where_that_can_be_avoided(homogeneous: int | None) -> None:
    # 20 batches of 8: keys that occur up to 20 times can be kept apart, whatever the random order
    keys = (
        [f"often{n}" for n in range(4) for _ in range(20)]
        + [f"pair{n // 2}" for n in range(60)]
        + list("abcdefghijklmnopqrst")
    )
    source = Keyed("a", keys)
    for number in range(5):
        for batch in epoch(HomogeneousBatches([source], 8, homogeneous=homogeneous), number):
            assert len({keys[d.index] for d in batch}) == 8


def test_keys_that_must_meet_are_spread_evenly_and_nothing_is_lost() -> None:
    keys = ["yes", "no"] * 40
    drawn = epoch(HomogeneousBatches([Keyed("a", keys)], batch_size=8))
    assert sorted(i for _, i in records(drawn)) == list(range(80))
    assert all(Counter(keys[d.index] for d in batch) == {"yes": 4, "no": 4} for batch in drawn)


def test_without_the_rule_equal_keys_would_meet() -> None:
    """The data of the test above does have duplicates to avoid."""
    keys = [f"often{n}" for n in range(4) for _ in range(20)] + [f"pair{n // 2}" for n in range(80)]
    drawn = epoch(HomogeneousBatches([Numbers("a", len(keys))], 8))
    assert any(len({keys[d.index] for d in batch}) < 8 for batch in drawn)


def test_frequent_keys_do_not_come_early() -> None:
    keys = ["often"] * 10 + [str(n) for n in range(790)]
    firsts = [
        next(
            n
            for n, batch in enumerate(epoch(HomogeneousBatches([Keyed("a", keys)], 8), e))
            for d in batch
            if d.index < 10
        )
        for e in range(20)
    ]
    assert max(firsts) > 10


def test_neighbours_change_from_epoch_to_epoch() -> None:
    batches = HomogeneousBatches([Keyed("a", [str(n) for n in range(64)])], 8)
    together = [{frozenset(d.index for d in batch) for batch in epoch(batches, e)} for e in (0, 1)]
    assert not together[0] & together[1]


@pytest.mark.parametrize("weights", [[3, 1, 0], {"b": 1 / 3, "c": 0}])
def test_weights_decide_the_share_of_the_batches(weights: list[float] | dict[str, float]) -> None:
    batches = HomogeneousBatches([Numbers("a", 80), Numbers("b", 800), Numbers("c", 3)], batch_size=8, weights=weights)
    drawn = epoch(batches)
    share = Counter(batch[0].source for batch in drawn)
    assert share[0] == pytest.approx(3 * share[1], abs=2) and not share[2]
    # source a is used up several times: evenly, and each time with other random numbers
    times = Counter(i for s, i in records(drawn) if s == 0)
    assert max(times.values()) - min(times.get(i, 0) for i in range(80)) <= 1
    assert len({d.seed for batch in drawn for d in batch}) == len(records(drawn))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_size": 16}, RecipeError, "source 'small' has 10 samples, fewer than the 16"),
        ({"batch_size": 8, "world_size": 2}, RecipeError, "fewer than the 16"),
        ({"batch_size": 0}, RecipeError, "below 1"),
        ({"batch_size": 8, "homogeneous": 3}, RecipeError, "8 is not a multiple of homogeneous 3"),
        ({"batch_size": 4, "weights": [1]}, RecipeError, "do not fit 2 sources"),
        ({"batch_size": 4, "weights": [1, -1]}, RecipeError, "negative"),
        ({"batch_size": 4, "weights": {"smal": 1}}, UnknownNameError, "did you mean 'small'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        HomogeneousBatches([Numbers("large", 100), Numbers("small", 10)], **arguments)
