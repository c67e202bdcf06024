"""The words of the job model that do something themselves."""

import uuid

from node.jobs import new_ids


def test_ids_are_random_uuids_that_differ_in_every_free_bit() -> None:
    ids = new_ids(4000)
    assert len(set(ids)) == len(ids)
    read = [uuid.UUID(each) for each in ids]
    assert {each.version for each in read} == {4}
    assert {each.variant for each in read} == {uuid.RFC_4122}
    assert [str(each) for each in read] == ids
    for place in {*range(36)} - {8, 13, 14, 18, 19, 23}:
        assert len({each[place] for each in ids}) == 16
    assert {each[19] for each in ids} == set("89ab")
