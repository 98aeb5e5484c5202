import random

import numpy as np
import pytest

from sb.data.order import Draws, Mixture, SourceOrder, local_positions, permutation

COUNTS = [5, 0, 7, 3, 11, 2, 9, 4]


def test_an_epoch_visits_every_sample_once_and_the_next_in_another_order():
    order = SourceOrder(COUNTS, seed=3, block_shards=3)
    epochs = [[order.place(e * 41 + i) for i in range(41)] for e in range(3)]
    wanted = {(shard, sample) for shard, count in enumerate(COUNTS) for sample in range(count)}
    for epoch in epochs:
        assert len(epoch) == 41 and set(epoch) == wanted
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_position_depends_on_nothing_but_the_seed():
    reference = [SourceOrder(COUNTS, 3, block_shards=3).place(p) for p in range(200)]
    order, positions = SourceOrder(COUNTS, 3, block_shards=3), list(range(200))
    random.Random(0).shuffle(positions)
    for position in positions:
        assert order.place(position) == reference[position]
    assert [SourceOrder(COUNTS, 4, block_shards=3).place(p) for p in range(200)] != reference
    assert [SourceOrder(COUNTS, 3, source=1, block_shards=3).place(p) for p in range(200)] != reference


def test_only_a_block_of_shards_is_open_at_a_time():
    order = SourceOrder([10] * 20, seed=0, block_shards=4)
    for first in range(0, 200, 40):
        shards = {order.place(p).shard for p in range(first, first + 40)}
        assert len(shards) == 4
        assert {order.spare(first, d).shard for d in np.linspace(0, 0.999, 50)} <= shards
        assert set(order.next_shards(first)) == {order.place(p).shard for p in range(first + 40, first + 80)}
    assert len({order.spare(0, d, anywhere=True).shard for d in np.linspace(0, 0.999, 200)}) == 20


def test_permutations_do_not_change_between_versions():
    assert permutation(8, 1, 0, 5).tolist() == [0, 1, 3, 5, 6, 4, 7, 2]
    assert [round(x, 6) for x in Draws(7).at(12345, 2).random(3).tolist()] == [0.74769, 0.940818, 0.719726]


def test_draws_belong_to_their_place():
    draws, again = Draws(7), Draws(7)
    later = again.at(6, 0).random(4).tolist()
    first = draws.at(5, 0).random(4).tolist()
    assert draws.at(6, 0).random(4).tolist() == later != first
    seen = {tuple(Draws(s).at(j, a).random(2)) for s in range(3) for j in range(50) for a in range(3)}
    assert len(seen) == 450
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match=f"seed must be between 0 and .*, not {seed}"):
            Draws(seed)
    values = np.concatenate([draws.at(j, 0).random(3) for j in range(4000)])
    assert abs(values.mean() - 0.5) < 0.01 and abs(np.corrcoef(values[:-3:3], values[3::3])[0, 1]) < 0.05


def test_a_mixture_draws_by_weight_and_walks_each_source_in_order():
    mixture = Mixture([6, 3, 0, 1], seed=0)
    places = [mixture.place(j) for j in range(5000)]
    for source, share in enumerate((0.6, 0.3, 0.0, 0.1)):
        positions = [p for s, p in places if s == source]
        assert positions == list(range(int(5000 * share)))
    window = [s for s, _ in places[100:300]]
    assert 0.45 < window.count(0) / 200 < 0.75
    assert [Mixture([6, 3, 0, 1], 0).place(j) for j in (4999, 17, 2500)] == [places[j] for j in (4999, 17, 2500)]
    assert Mixture([1, 1e-9], 0).slots.tolist() == [999, 1]
    assert Mixture([1, 1e-9, 1e-9], 0).slots.tolist() == [998, 1, 1]
    assert Mixture([3, 3, 1e-9, 2e-9, 1], 0).slots.min() == 1
    with pytest.raises(ValueError, match="at most 1000 sources, not 1001"):
        Mixture([1.0] * 1001, 0)
    with pytest.raises(ValueError, match="weights of the sources"):
        Mixture([0, 0], 0)


def test_ranks_share_the_positions():
    positions = [j for n in range(3) for r in range(4) for j in local_positions(100, n, r, 4, 5)]
    assert positions == list(range(100, 160))
