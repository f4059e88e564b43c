"""The published behaviour, trap by trap."""

from __future__ import annotations

import pytest
import torch
from test_key_driven_attention import GROUPS, HEADS, REST, plain, states, with_norms

from gqakit.errors import TrainingError
from gqakit.key_driven.attention import UpdateSchedule, diagonal
from gqakit.key_driven.published import (
    PublishedDynamic,
    PublishedKeyDistributed,
    PublishedPerturbed,
    published_perturbation,
)


def dynamic(by_change: bool = False, window: int = 2) -> PublishedDynamic:
    return PublishedDynamic(HEADS, GROUPS, 0, UpdateSchedule(window), by_change=by_change)


def test_the_shortest_keys_lose_all_query_heads():
    heads = PublishedKeyDistributed(HEADS, GROUPS, 0, UpdateSchedule()).train()
    query, _, value = states()
    key = with_norms(1, 2, 3)
    out = heads.attend(query, key, value, *REST)
    seen = plain(0, 0, 1, 1, 1, 1).attend(query, key[:, 1:], value[:, 1:], *REST)
    assert torch.equal(out, seen)
    assert heads.frozen() == (0, 2, 4)


def test_evaluation_depends_on_the_rest_of_the_batch():
    heads = PublishedKeyDistributed(HEADS, GROUPS, 0, UpdateSchedule()).eval()
    query, _, value = states()
    key = torch.cat([with_norms(1, 2, 3, batch=1), with_norms(9, 2, 1, batch=1)])
    alone = heads.attend(query[:1], key[:1], value[:1], *REST)
    assert not torch.allclose(heads.attend(query, key, value, *REST)[:1], alone)
    assert heads.frozen() == (2, 2, 2)  # evaluation leaves what is frozen alone


def test_equal_norms_have_no_answer():
    query, key, value = states()
    key = key[:, :1].expand(-1, GROUPS, -1, -1)
    with pytest.raises(TrainingError, match=r"layer 0: all 3 norms .* 0/0; leave out `as_published`"):
        PublishedKeyDistributed(HEADS, GROUPS, 0, UpdateSchedule()).attend(query, key, value, *REST)


def test_the_moving_average_keeps_the_last_value():
    heads = dynamic(window=300).train()
    first = with_norms(1, 1, 4)
    assert heads.allocate(first) == (1, 1, 4)  # step 0 counts
    torch.testing.assert_close(
        heads.cache, torch.tensor([2, 2, 8]) / 300
    )  # sums over two images, almost gone
    for _ in range(299):
        heads.allocate(with_norms(4, 1, 1))
        assert heads.frozen() == (1, 1, 4)
    assert heads.allocate(with_norms(4, 1, 1)) == (4, 1, 1)


def test_evaluation_overwrites_what_training_goes_on_with():
    heads = dynamic(by_change=True, window=2).train()
    heads.allocate(with_norms(1, 1, 4))
    assert heads.eval().allocate(with_norms(4, 1, 1)) == (4, 1, 1)
    torch.testing.assert_close(heads.cache, torch.tensor([8.0, 2.0, 2.0]))
    assert heads.frozen() == (1, 1, 4)
    assert heads.train().allocate(with_norms(1, 1, 4)) == (4, 1, 1)  # until the next window
    with pytest.raises(TrainingError, match="all 3 weights are 0"):
        heads.eval().allocate(with_norms(1, 1, 4)), heads.allocate(with_norms(1, 1, 4))


def test_ties_go_by_chance_that_is_seeded():
    def found(seed: int) -> list[tuple[int, ...]]:
        heads = PublishedDynamic(8, GROUPS, 0, UpdateSchedule(1, seed=seed), by_change=False).train()
        return [heads.allocate(with_norms(1, 1, 1)) for _ in range(20)]

    assert len(set(found(0))) == 3
    assert found(0) == found(0) != found(1)


def test_published_noise_is_shared_keeps_its_mean_and_loses_its_diagonal():
    out = states()[0] + 3
    flat = out.flatten(2)
    noise = published_perturbation(out, (2, 2, 2), torch.Generator().manual_seed(0)).flatten(2)
    torch.testing.assert_close(noise.mean(-1), flat.mean(-1))
    torch.testing.assert_close(noise.std(-1), flat.std(-1))
    standard = (noise - flat.mean(-1, keepdim=True)) / flat.std(-1, keepdim=True)
    torch.testing.assert_close(standard[0], standard[1])
    for head, column in enumerate(diagonal((2, 2, 2))):
        assert noise[0, head, column] != 0
        assert standard[0, head].argmin() == column  # uniform noise has no other zero


def test_published_noise_stays_at_evaluation():
    query, key, value = states()
    heads = PublishedPerturbed(HEADS, GROUPS, 0, UpdateSchedule()).eval()
    out = heads.attend(query, key, value, *REST)
    assert not torch.allclose(out, plain(0, 0, 1, 1, 2, 2).attend(query, key, value, *REST))
    # The mean over positions and channels goes.
    torch.testing.assert_close(out.mean((2, 3)), torch.zeros(2, HEADS), atol=1e-6, rtol=0)
