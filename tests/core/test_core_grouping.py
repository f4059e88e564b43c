"""Partitions and groupings: canonical labels, round trips, query maps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gqakit.core.grouping import Grouping, Partition, canonical_labels

any_labels = st.lists(st.integers(-3, 9), min_size=1, max_size=12)


# A label of keys and one of values for each head, and query heads a KV head. Groupings are built in the tests,
# not in a strategy: the checks of their signatures draw random numbers, which hypothesis forbids there.
label_pairs = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=8)
per_heads = st.integers(1, 4)


def grouping_of(pairs):
    return Grouping(Partition.of(k for k, _ in pairs), Partition.of(v for _, v in pairs))


@given(any_labels)
def test_canonical_labels_group_the_same_heads(labels):
    out = canonical_labels(labels)
    assert canonical_labels(out) == out
    assert [out[: i + 1].index(x) for i, x in enumerate(out)] == [labels.index(x) for x in labels]
    assert list(dict.fromkeys(out)) == list(range(len(set(labels))))


@given(any_labels, st.randoms(use_true_random=False))
def test_relabelling_gives_the_same_partition(labels, rng):
    names = list(range(100, 120))
    rng.shuffle(names)
    renamed = [names[label + 3] for label in labels]
    assert Partition.of(renamed) == Partition.of(labels)


@given(any_labels)
def test_groups_round_trip_and_sizes(labels):
    partition = Partition.of(labels)
    assert Partition.from_groups(reversed(partition.groups)) == partition
    assert sorted(h for group in partition.groups for h in group) == list(range(len(labels)))
    assert all(list(group) == sorted(group) for group in partition.groups)
    assert all(partition.labels[h] == g for g, group in enumerate(partition.groups) for h in group)
    assert sum(partition.sizes) == partition.num_heads == len(labels)
    assert len(partition.sizes) == partition.num_groups == len(set(labels))
    assert partition.is_identity == (max(partition.sizes) == 1)
    assert partition.is_equal == (max(partition.sizes) == min(partition.sizes))


def test_named_partitions():
    assert Partition.identity(3).labels == (0, 1, 2)
    assert Partition.identity(3).is_identity
    assert Partition.single(3).groups == ((0, 1, 2),)
    assert not Partition.single(3).is_identity
    assert Partition.single(1) == Partition.identity(1)


@given(label_pairs, per_heads)
def test_query_heads_follow_their_kv_head(pairs, per_head):
    grouping, queries = grouping_of(pairs), len(pairs) * per_head
    for partition in (grouping.key, grouping.value):
        assert partition.of_queries(queries) == tuple(
            label for label in partition.labels for _ in range(per_head)
        )


@given(label_pairs, per_heads)
def test_query_order_makes_groups_contiguous(pairs, per_head):
    grouping, queries = grouping_of(pairs), len(pairs) * per_head
    order = grouping.query_order(queries)
    key, value = grouping.query_maps(queries)
    assert sorted(order) == list(range(queries))
    assert list(zip(key, value, strict=True)) == sorted(zip(key, value, strict=True))
    source_key, source_value = grouping.key.of_queries(queries), grouping.value.of_queries(queries)
    assert key == tuple(source_key[q] for q in order)
    assert value == tuple(source_value[q] for q in order)
    alike = {}
    for q in order:  # stable: query heads that read the same pair keep their order
        assert alike.get((source_key[q], source_value[q]), -1) < q
        alike[source_key[q], source_value[q]] = q


def test_query_order_of_contiguous_groups_is_the_identity():
    assert Grouping.shared(Partition((0, 0, 1, 1))).query_order(8) == tuple(range(8))


def test_kinds_of_grouping():
    equal, unequal = Partition((0, 1, 0, 1)), Partition((0, 0, 0, 1))
    assert Grouping.shared(equal).is_uniform
    assert not Grouping.shared(unequal).is_uniform
    assert not Grouping(equal, Partition((0, 0, 1, 1))).is_uniform
    assert not Grouping(Partition.identity(4), equal).is_identity
    assert not Grouping(equal, Partition.identity(4)).is_identity
    assert Grouping.shared(Partition.identity(4)).is_identity


@pytest.mark.parametrize("labels", [(), (1, 0), (0, 2), (0, 2, 1), (0, -1)])
def test_labels_that_are_not_canonical(labels):
    with pytest.raises(ValueError, match=r"canonical|at least one head"):
        Partition(labels)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[0, 1], [1, 2]], "head 1 stands in two groups"),
        ([[0, 1], [3]], r"cover heads 0\.\.2, got \[0, 1, 3\]"),
        ([[-1, 0]], "cover heads"),
        ([], "at least one head"),
    ],
)
def test_groups_that_are_no_partition(groups, message):
    with pytest.raises(ValueError, match=message):
        Partition.from_groups(groups)


def test_query_heads_must_be_a_multiple():
    with pytest.raises(ValueError, match="7 query heads are no multiple of 4 KV heads"):
        Partition.single(4).of_queries(7)


def test_keys_and_values_must_be_as_many():
    with pytest.raises(ValueError, match="4 key heads but 3 value heads"):
        Grouping(Partition.single(4), Partition.single(3))
