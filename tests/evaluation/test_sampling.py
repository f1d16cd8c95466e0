import torch

from wagle_trl.evaluation.sampling import GumbelNoise


def test_the_largest_noisy_score_is_drawn_from_the_softmax_at_the_temperature():
    logits, temperature, draws = torch.tensor([[2.0, 0.0, -1.0, -torch.inf]]), 2.0, 4000
    noise = GumbelNoise(temperature, [(7, draw) for draw in range(draws)])
    drawn = noise(None, logits.expand(draws, -1)).argmax(-1).bincount(minlength=4)
    expected = draws * (logits[0] / temperature).softmax(-1)
    deviation = (expected * (1 - expected / draws)).sqrt()
    assert ((drawn - expected).abs() <= 5 * deviation).all()


def test_a_stream_depends_on_its_seed_alone_and_goes_on_from_token_to_token():
    scores = torch.zeros(3, 8)
    together, alone = GumbelNoise(1.0, [(0, 1), (0, 2), (5, 1)]), GumbelNoise(1.0, [(0, 2)])
    first, second = together(None, scores), together(None, scores)
    assert torch.equal(alone(None, scores[1:2])[0], first[1])
    assert torch.equal(alone(None, scores[1:2])[0], second[1])
    assert len({tuple(row) for row in torch.cat([first, second]).tolist()}) == 6


def test_scores_in_bf16_are_sampled_in_fp32():
    scores = torch.zeros(1, 1000, dtype=torch.bfloat16)
    noisy = GumbelNoise(1.0, [(0,)])(None, scores)
    assert noisy.dtype == torch.float32 and len(noisy.unique()) > 990
