"""The flow policy: its mathematics equals the library's, with either kind of eyes."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from policy_samples import SENTENCES, contract, observation, policy

from policytrim_ros.core.config import ConfigError
from policytrim_ros.policies import checkpoint
from policytrim_ros.policies.flow import Context, FlowConfig, FlowPolicy
from policytrim_ros.policies.policy import Observation
from policytrim_ros.policies.samplers import Sampler, rollout
from policytrim_ros.policies.tokenizer import IMAGE, train_tokenizer


@pytest.fixture(scope="module")
def flow():
    torch.manual_seed(0)
    return policy()


@pytest.fixture(scope="module")
def siglip():
    torch.manual_seed(0)
    return policy(vision="siglip", patch_size=8)


def context_of(flow, seen):
    inputs = flow.inputs(seen)
    return flow.encode(inputs), inputs.state


@torch.no_grad()
@pytest.mark.parametrize("eyes, tokens", [("flow", 2), ("siglip", 16)])
def test_our_sampler_equals_the_library_s(eyes, tokens, request):
    flow, seen = request.getfixturevalue(eyes), observation()
    context, state = context_of(flow, seen)
    noise = torch.randn(2, 6, 7, generator=torch.Generator().manual_seed(1))
    ids, words = flow.words(seen.instruction)
    images, pixels = torch.full((2, 2 * tokens), flow.tokenizer.token_to_id(IMAGE)), flow.pixels(seen.images)
    if eyes == "siglip":
        pixels = F.pad(pixels, (0, 0, 0, 32 - 18))  # 32 x 18 px in the upper left corner of 32 x 32
    theirs = flow.pi0.sample_actions(
        state=flow.state_features(state),
        input_ids=torch.cat([images, ids], 1),
        pixel_values=pixels,
        noise=noise,
        attention_mask=torch.cat([torch.ones_like(images), words], 1),
        pixel_attention_mask=torch.ones(2, 2, dtype=torch.bool),
        num_steps=4,
    )
    torch.testing.assert_close(flow.integrate(context, noise, 4), theirs, rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("gripper", [True, False])
def test_a_policy_acts_with_the_noise_that_it_explores_with_where_its_configuration_says_so(tmp_path, gripper):
    torch.manual_seed(0)
    made = policy(acting_noise=0.6, acting_gripper=gripper)
    seen = observation()
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    inputs = made.inputs(seen)
    sampler = Sampler("cps", 0.6, joint=True, gripper=gripper)
    chain = rollout(made, made.encode(inputs), made.noise(2, generators), sampler, generators)
    found = made.predict(seen, seeds=[1, 2])
    np.testing.assert_allclose(found, made.to_robot(chain.actions, inputs.state).numpy(), atol=1e-6)
    checkpoint.save(tmp_path / "kept", made, made={"recipe": "test"})
    assert np.array_equal(checkpoint.load(tmp_path / "kept")[0].predict(seen, seeds=[1, 2]), found)
    made.config, ode = replace(made.config, acting_noise=0.0), made.predict(seen, seeds=[1, 2], steps=1)
    assert not np.allclose(made.predict(seen, seeds=[1, 2]), found)
    made.config = replace(made.config, acting_noise=0.6)
    assert np.array_equal(made.predict(seen, seeds=[1, 2], steps=1), ode)  # a single step has none


@torch.no_grad()
def test_a_context_can_be_used_again(flow):
    context, _ = context_of(flow, observation())
    x, tau = torch.randn(2, 6, 7), torch.tensor([0.3, 0.9])
    assert torch.equal(flow.velocity(context, x, tau), flow.velocity(context, x, tau))


@torch.no_grad()
def test_a_repeated_context_gives_the_same_velocity(flow):
    context, _ = context_of(flow, observation())
    x, tau = torch.randn(2, 6, 7), torch.tensor([0.3, 0.9])
    once = flow.velocity(context, x, tau)
    twice = flow.velocity(context.repeat(2), x.repeat_interleave(2, 0), tau.repeat_interleave(2))
    torch.testing.assert_close(twice[::2], once, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(twice[1::2], once, rtol=1e-5, atol=1e-6)


def test_gradients_reach_the_vision_tower_through_the_prefix():
    flow = policy()
    context, _ = context_of(flow, observation())
    flow.velocity(context.repeat(2), torch.randn(4, 6, 7), torch.rand(4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in flow.pi0.model.vlm.vision_tower.parameters())


def test_the_members_of_a_batch_do_not_mix(flow):
    seen = observation(batch=2)
    alone = Observation({k: v[1:] for k, v in seen.images.items()}, seen.state[1:], seen.instruction[1:])
    noise = torch.randn(2, 6, 7, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        together, single = (flow.integrate(context_of(flow, s)[0], n) for s, n in ((seen, noise), (alone, noise[1:])))
    torch.testing.assert_close(together[1:], single, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_contexts_are_cut_joined_and_never_changed(flow):
    context, _ = context_of(flow, observation(batch=3))
    x, tau = torch.randn(3, 6, 7), torch.tensor([0.2, 0.5, 0.9])
    whole, index = flow.velocity(context, x, tau), torch.tensor([2, 0])
    torch.testing.assert_close(flow.velocity(context.rows(index), x[index], tau[index]), whole[index], rtol=1e-4, atol=1e-5)
    joined = Context.cat([context.rows([0]), context.rows([1, 2])])
    torch.testing.assert_close(flow.velocity(joined, x, tau), whole, rtol=1e-4, atol=1e-5)
    assert torch.equal(flow.velocity(context, x, tau), whole)


def test_siglip_sees_and_learns(siglip):
    losses = siglip.losses(siglip.inputs(observation()), torch.zeros(2, 6, 7), generator=torch.Generator().manual_seed(0))
    losses["action"].backward()
    grads = {name: parameter.grad for name, parameter in siglip.pi0.model.vlm.named_parameters() if "language" not in name}
    assert any("multi_modal_projector" in name for name in grads)
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads.values())
    siglip.zero_grad()
    assert not any("locator" in name for name in siglip.state_dict())


def test_pictures_larger_than_the_network_s_are_refused():
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    text = dict(sizes, num_key_value_heads=1, head_dim=8)
    pi0 = dict(text=dict(text, vocab_size=64), expert=text, vision=dict(sizes, image_size=16, patch_size=8), image_token_id=3)
    with pytest.raises(ValueError, match="16x16"):
        FlowPolicy(FlowConfig(horizon=6, pi0=pi0), contract(), train_tokenizer(SENTENCES))


@pytest.mark.parametrize(
    "values, words",
    [
        (dict(vision="eagle"), "keypoints"),
        (dict(prompt="do it"), "prompt"),
        (dict(key_value_heads=3), "does not divide heads"),
        (dict(pi0={"text": {}, "vision": {}, "expert": {}, "auto_map": {"AutoModel": "evil.Model"}}), "auto_map"),
        (dict(pi0={"text": {"_attn_implementation": "evil/kernels"}, "vision": {}, "expert": {}}), "_attn_implementation"),
        (dict(pi0={"text": {}, "vision": {}}), "expert"),
    ],
)
def test_a_configuration_that_is_no_size_is_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        FlowConfig.from_mapping({**asdict(FlowConfig()), **values})


def test_a_word_beyond_the_embedding_is_refused():
    with pytest.raises(ValueError, match="words"):
        policy(vocabulary=5)
