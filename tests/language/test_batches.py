"""Steps are a function of (seed, epoch), and every token is where the loss looks for it."""

import pytest

from eakd.errors import UserError
from language.networks import text_data


def test_steps_are_a_function_of_seed_and_epoch():
    data = text_data()
    assert list(data.step_rows(3)) == list(text_data().step_rows(3))
    assert list(data.step_rows(3)) != list(data.step_rows(4))
    assert list(data.step_rows(3)) != list(text_data(seed=1).step_rows(3))
    assert sorted(i for step in data.step_rows(3) for i in step) == list(range(24))  # each once
    whole = [batch.tokens.tolist() for step in data.epoch(2) for batch in step]
    rest = [batch.tokens.tolist() for step in data.epoch(2, start=1) for batch in step]
    assert whole[-len(rest) :] == rest and len(rest) < len(whole)


def test_an_epoch_of_more_steps_than_rows_draws_again():
    data = text_data(steps_per_epoch=5)
    steps = list(data.step_rows(1))
    assert len(steps) == 5 and sorted(steps[0] + steps[1]) == list(range(24))
    assert sorted(steps[2] + steps[3]) == list(range(24)) and steps[0] != steps[2]


def test_a_batch_holds_every_answer_token_once():
    data = text_data(tokens_per_batch=100)
    for step in data.epoch(1):
        seen = {}
        for batch in step:
            assert batch.tokens.numel() <= 100 or len(batch.tokens) == 1
            before = batch.tokens.flatten()[batch.places]
            for place, i in enumerate(batch.index.tolist()):
                row, mine = data.train[i], batch.row == place
                assert tuple(batch.targets[mine].tolist()) == row.response_ids
                known = (*row.prompt_ids, *row.response_ids)[len(row.prompt_ids) - 1 : -1]
                assert tuple(before[mine].tolist()) == known
                seen[i] = len(row.response_ids)
            assert batch.lengths == tuple(seen[i] for i in batch.index.tolist())
        assert len(seen) == 12
        assert {batch.count for batch in step} == {sum(seen.values())}
        assert all(len(batch.step) == len(step) for batch in step)


def test_processes_share_a_step():
    parts = [list(text_data(part=(rank, 3)).epoch(1)) for rank in range(3)]
    for whole, *shares in zip(text_data().epoch(1), *parts, strict=True):
        dealt = [i for share in shares for batch in share for i in batch.index.tolist()]
        assert sorted(dealt) == sorted(whole[0].step[0].index.tolist() + [
            i for batch in whole[1:] for i in batch.index.tolist()
        ])  # fmt: skip
        assert {batch.count for share in shares for batch in share} == {whole[0].count}
        positions = [sum(batch.tokens.numel() for batch in share) for share in shares]
        assert max(positions) < 2 * min(positions)


def test_too_few_rows_are_refused():
    with pytest.raises(UserError, match="batch_size: found 25, allowed is at most 24"):
        text_data(batch_size=25)
    with pytest.raises(UserError, match="batch_size: found 2 for 3 processes"):
        text_data(batch_size=2, part=(0, 3))
