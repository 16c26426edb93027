"""The token families: what they compute is what OpenVLA and OpenVLA-OFT compute, their probabilities are exact."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from policy_samples import SENTENCES, contract, observation

from policytrim_ros.core.commitment import Commitment
from policytrim_ros.core.config import ConfigError
from policytrim_ros.policies import checkpoint
from policytrim_ros.policies.autoregressive import AutoregressiveConfig, AutoregressivePolicy
from policytrim_ros.policies.bins import BINS
from policytrim_ros.policies.openvla import OPENVLA_7B, load_published, published_source
from policytrim_ros.policies.parallel import ParallelConfig, ParallelPolicy
from policytrim_ros.policies.policy import Observation
from policytrim_ros.policies.prismatic import PrismaticPolicy, last_token
from policytrim_ros.policies.tokenizer import train_tokenizer

TINY = {
    "image_size": 32,
    "dino_hidden": 16,
    "siglip_hidden": 16,
    "siglip_feed_forward": 32,
    "hidden": 32,
    "feed_forward": 48,
    "layers": 2,
    "heads": 2,
    "key_value_heads": 1,
}
FAMILIES = ("parallel", "autoregressive")


def words():
    return train_tokenizer(PrismaticPolicy.prompt(sentence) for sentence in SENTENCES)


def make(family="parallel", seed=0, cameras=("front", "wrist"), **changes):
    """A small policy whose weights are large enough for its distributions to differ from flat ones."""
    torch.manual_seed(seed)
    if family == "parallel":
        config = ParallelConfig(**{"horizon": 2, **TINY, **changes})
        policy = ParallelPolicy(config, contract(config.horizon, cameras, execution_horizon=1), words())
    else:
        config = AutoregressiveConfig(**{**TINY, **changes})
        policy = AutoregressivePolicy(config, contract(1, cameras, execution_horizon=1), words())
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    return policy.eval()


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


# -- attention ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_an_action_position_sees_the_placeholders_after_it():
    policy = make(placeholders="learned")
    prefix = policy.encode(policy.inputs(observation()))
    bidirectional, causal = policy.action_hidden(prefix), policy.action_hidden(prefix, causal=True)
    policy.placeholders[-1] += 1.0
    assert not torch.allclose(policy.action_hidden(prefix)[:, 0, 0], bidirectional[:, 0, 0], atol=1e-4)
    torch.testing.assert_close(policy.action_hidden(prefix, causal=True)[:, :, :-1], causal[:, :, :-1])


@torch.no_grad()
def test_placeholders_without_content_are_told_apart_by_position_alone():
    policy = make(placeholders="zero", layers=3)
    hidden = policy.action_hidden(policy.encode(policy.inputs(observation()))).flatten(1, 2)[0, 1:]
    assert torch.pdist(hidden).min() > 1e-4


@torch.no_grad()
def test_a_shorter_instruction_in_the_batch_is_padded_without_effect():
    policy = make()
    seen = observation(batch=2)
    sentences = ["put the tape into the box", "stand upright"]
    both = policy.inputs(Observation(seen.images, seen.state, sentences))
    alone = policy.inputs(Observation({k: v[1:] for k, v in seen.images.items()}, seen.state[1:], sentences[1:]))
    assert both.ids.shape[1] > alone.ids.shape[1]
    for family in FAMILIES:
        policy = make(family)
        tokens = policy.act(alone, temperature=0)[0]
        torch.testing.assert_close(
            policy.log_prob(both, tokens.expand(2, -1, -1))[1:], policy.log_prob(alone, tokens), rtol=1e-4, atol=1e-4
        )


# -- distributions --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_both_families_give_the_first_token_the_same_distribution():
    parallel, autoregressive = make("parallel", horizon=1), make("autoregressive")
    autoregressive.load_state_dict(parallel.state_dict())
    inputs = parallel.inputs(observation())
    prefix = parallel.encode(inputs)
    first = parallel.bin_logits(parallel.action_hidden(prefix, causal=True))[:, 0, 0]
    tokens = torch.full((2, 1, 7), parallel.config.vocabulary - 1)
    torch.testing.assert_close(autoregressive.action_logits(prefix, tokens)[:, 0, 0], first, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_cache_changes_nothing():
    policy = make("autoregressive")
    inputs = policy.inputs(observation())
    prefix = policy.encode(inputs)
    tokens, _, _ = policy.act(inputs, generators(1, 2))
    embedding = policy.language_model.get_input_embeddings()
    for component in range(7):  # every component by a forward pass of its own over everything before it
        spoken = torch.cat([prefix.tokens, embedding(tokens[:, 0, :component])], dim=1)
        mask = torch.cat([prefix.mask, prefix.mask.new_ones(2, component)], dim=1)
        hidden = last_token(policy.transform(spoken, mask, causal=True), mask)
        again = policy._draw(
            policy.bin_logits(hidden),
            torch.stack([torch.rand(1, 7, generator=g) for g in generators(1, 2)])[:, 0, component],
            1.0,
        )
        assert torch.equal(again, tokens[:, 0, component])


@torch.no_grad()
def test_a_forward_pass_over_spoken_tokens_gives_the_sum_of_the_steps():
    policy = make("autoregressive")
    inputs = policy.inputs(observation())
    tokens, _, stepwise = policy.act(inputs, generators(1, 2))
    torch.testing.assert_close(policy.log_prob(inputs, tokens), stepwise, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_later_component_depends_on_an_earlier_choice_only_in_the_autoregressive_family():
    for family in FAMILIES:
        policy = make(family, **({"horizon": 1} if family == "parallel" else {}))
        prefix = policy.encode(policy.inputs(observation()))
        low = torch.full((2, 1, 7), policy.config.vocabulary - 1)
        high = low.clone()
        high[..., 0] -= 200
        same = torch.allclose(policy.action_logits(prefix, low)[..., 1:, :], policy.action_logits(prefix, high)[..., 1:, :])
        assert same == (family == "parallel")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_recomputed_log_probability_is_the_one_of_sampling(family, temperature):
    policy = make(family)
    inputs = policy.inputs(observation(batch=3))
    with torch.no_grad():
        tokens, x, log_prob = policy.act(inputs, generators(1, 2, 3), temperature)
    again = policy.log_prob(inputs, tokens, temperature)
    assert log_prob.shape == (3, policy.config.horizon) and again.requires_grad
    torch.testing.assert_close(again.detach(), log_prob, rtol=0, atol=1e-5)
    assert torch.equal(x, policy.values_of(tokens))


@torch.no_grad()
@pytest.mark.parametrize("family, correlation", [*((family, 0.0) for family in FAMILIES), ("parallel", 0.9)])
def test_tokens_are_drawn_as_often_as_their_probability_says(family, correlation):
    policy = make(family, cameras=("front",))
    seen = observation(batch=1, cameras=("front",))
    repeated = policy.inputs(seen).rows(torch.zeros(1500, dtype=torch.int64))
    first = policy.act(repeated, generators(*range(1500)), 1.0, correlation)[0][:, 0, 0] - (policy.config.vocabulary - BINS)
    prefix = policy.encode(repeated.rows(slice(0, 1)))
    expected = policy.action_logits(prefix, torch.full((1, 1, 7), policy.config.vocabulary - 1))[0, 0, 0].softmax(-1)
    seen_often = torch.bincount(first, minlength=BINS) / len(first)
    assert (seen_often.cumsum(0) - expected.cumsum(0)).abs().max() < 1.95 / len(first) ** 0.5  # Kolmogorov, 0.1 %


@torch.no_grad()
def test_correlated_draws_hang_together_along_a_chunk_and_not_between_joints():
    policy = make()
    inputs = policy.inputs(observation(batch=1)).rows(torch.zeros(4000, dtype=torch.int64))
    chances = policy._chances(inputs, generators(*range(4000)), correlation=0.8)
    assert chances.shape == (4000, policy.config.horizon, 7) and 0.0 <= chances.min() and chances.max() < 1.0
    normal = torch.special.ndtri(chances)
    together = torch.corrcoef(normal[:, :, 0].T)
    assert together[~torch.eye(len(together), dtype=bool)].mean() == pytest.approx(0.8, abs=0.03)
    assert abs(torch.corrcoef(normal[:, 0].T) - torch.eye(7)).max() < 0.1


@torch.no_grad()
def test_a_lower_temperature_is_less_random():
    policy = make()
    inputs = policy.inputs(observation())
    likely = policy.act(inputs, temperature=0)[0]
    assert torch.equal(policy.act(inputs, generators(1, 2), 1e-3)[0], likely)
    assert not torch.equal(policy.act(inputs, generators(1, 2), 1.0)[0], likely)
    assert torch.all(policy.log_prob(inputs, likely, 0.5) > policy.log_prob(inputs, likely, 1.0))


def test_the_gradient_of_a_log_probability_reaches_both_towers_and_the_joint_state():
    for family in FAMILIES:
        policy = make(family, locate=False)
        inputs = policy.inputs(observation())
        policy.log_prob(inputs, policy.act(inputs)[0]).sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.vision_backbone.parameters())
        assert policy.proprio_projector.fc1.weight.grad.abs().sum() > 0


# -- acting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_does_not_depend_on_who_else_is_in_the_batch(family):
    policy = make(family, temperature=1.0)
    seen = observation(batch=2)
    alone = Observation({k: v[1:] for k, v in seen.images.items()}, seen.state[1:], seen.instruction[1:])
    np.testing.assert_allclose(policy.predict(seen, seeds=[5, 6])[1:], policy.predict(alone, seeds=[6]), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_temperature_the_most_likely_tokens_are_taken_whatever_the_seed(family):
    policy = make(family)
    seen = observation()
    assert np.array_equal(policy.predict(seen, seeds=[3, 3]), policy.predict(seen, seeds=[4, 4]))
    assert not np.array_equal(
        make(family, temperature=1.0).predict(seen, seeds=[3, 3]), make(family, temperature=1.0).predict(seen, seeds=[4, 4])
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_policy_takes_no_notice_of_a_plan(family):
    policy, seen = make(family), observation()
    chunk = policy.predict(seen)
    told = replace(seen, committed=[Commitment(chunk[0] + 0.1, 1), None])
    assert not policy.guided and np.array_equal(policy.predict(told), chunk)


@pytest.mark.parametrize("horizon", [8, 16])
def test_a_chunk_is_absolute_and_in_the_robot_s_units(horizon):
    chunk = make(horizon=horizon).predict(observation())
    assert chunk.shape == (2, horizon, 7) and chunk.dtype == np.float32
    assert np.all((0 <= chunk[..., 6]) & (chunk[..., 6] <= 0.07))


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_joint_state_and_words_matter(family):
    policy = make(family)
    seen = observation()

    def likelihood(other):
        tokens = torch.full((2, policy.config.horizon, 7), policy.config.vocabulary - 100)
        with torch.no_grad():
            return policy.log_prob(policy.inputs(other), tokens)

    dark = Observation({k: np.zeros_like(v) for k, v in seen.images.items()}, seen.state, seen.instruction)
    moved = Observation(seen.images, seen.state + 0.2, seen.instruction)
    other = Observation(seen.images, seen.state, seen.instruction[::-1])
    for changed in (dark, moved, other):
        assert not torch.allclose(likelihood(changed), likelihood(seen), atol=1e-3)


def test_an_instruction_of_unknown_words_is_refused_though_the_prompt_s_are_known():
    with pytest.raises(ValueError, match="no word"):
        make().words(["zzz qqq"])


# -- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family, head", [("parallel", "tokens"), ("parallel", "regression"), ("autoregressive", "tokens")])
def test_a_few_steps_on_one_batch_lower_every_loss(family, head):
    policy = make(family, **({"head": head} if family == "parallel" else {})).train()
    inputs, horizon = policy.inputs(observation(batch=4)), policy.config.horizon
    actions = inputs.state[:, None, 7:].repeat(1, horizon, 1) + torch.linspace(-0.2, 0.2, 4)[:, None, None]
    actions[..., 6] = 0.03
    places = torch.rand(4, 2, 6, generator=torch.Generator().manual_seed(0))
    places[:, 1] = torch.nan
    optimizer, history = torch.optim.AdamW(policy.parameters(), lr=3e-3), []
    for _ in range(25):
        losses = policy.losses(inputs, actions, generator=torch.Generator(), places=places)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    assert set(history[0]) == {"action", "locate"}
    assert all(history[-1][name] < 0.7 * history[0][name] for name in history[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_costs_little(family):
    policy = make(family)
    inputs, actions = policy.inputs(observation()), torch.zeros(2, policy.config.horizon, 7)
    with torch.no_grad():
        exact = policy.losses(inputs, actions, generator=None, places=torch.zeros(2, 2, 6))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = policy.losses(inputs, actions, generator=None, places=torch.zeros(2, 2, 6))
    assert all(abs(half[name] - exact[name]) < 0.05 * exact[name] + 0.02 for name in exact)


def test_the_auxiliary_loss_is_left_out_where_positions_are_unknown_or_unwanted():
    policy = make()
    inputs, actions = policy.inputs(observation()), torch.zeros(2, 2, 7)
    assert set(policy.losses(inputs, actions, generator=None)) == {"action"}
    blind = make(locate=False)
    assert set(blind.losses(inputs, actions, generator=None, places=torch.zeros(2, 2, 6))) == {"action"}
    assert not hasattr(blind, "locator")


@pytest.mark.parametrize("family", FAMILIES)
def test_demonstrations_without_object_poses_can_be_learned_from(family):
    policy = make(family)
    inputs = policy.inputs(observation())
    actions = torch.zeros(2, policy.config.horizon, 7)
    losses = policy.losses(inputs, actions, generator=None, places=torch.full((2, 2, 6), torch.nan))
    assert losses["locate"] == 0 and torch.isfinite(losses["action"])


def test_the_regression_head_has_no_log_probability():
    policy = make(head="regression")
    inputs = policy.inputs(observation())
    with pytest.raises(ValueError, match="deterministic"):
        policy.act(inputs)
    with pytest.raises(ValueError, match="deterministic"):
        policy.log_prob(inputs, torch.zeros(2, 2, 7, dtype=torch.int64))
    assert policy.predict(observation()).shape == (2, 2, 7)


# -- configuration and checkpoints ----------------------------------------------------------------------------------


def test_an_autoregressive_policy_decides_one_action_at_a_time():
    with pytest.raises(ConfigError, match="horizon"):
        AutoregressiveConfig(horizon=2)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"vocabulary": 270}, "room for 14"),
        ({"image_size": 33}, "does not divide image_size"),
        ({"key_value_heads": 3}, "does not divide heads"),
        ({"cameras": ()}, "camera"),
    ],
)
def test_a_network_that_cannot_work_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        make(**changes)


@pytest.mark.parametrize(
    "family, changes", [("parallel", {"placeholders": "learned"}), ("parallel", {"head": "regression"}), ("autoregressive", {})]
)
def test_a_checkpoint_brings_the_same_policy_back(tmp_path, family, changes):
    policy = make(family, **changes)
    manifest = checkpoint.save(tmp_path / "it", policy, made={"seed": 0})
    again, _ = checkpoint.load(tmp_path / "it")
    assert manifest["family"] == family and type(again) is type(policy) and again.config == policy.config
    assert np.array_equal(again.predict(observation()), policy.predict(observation()))


# -- published weights ----------------------------------------------------------------------------------------------


def vit(prefix, width, inner, blocks, patch, positions, extra):
    """Published names and shapes of a timm vision transformer with ``blocks`` blocks."""
    shapes = {
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "pos_embed": (1, positions, width),
        "norm.weight": (width,),
        "norm.bias": (width,),
        **extra,
    }
    for index in range(blocks):
        block = {
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (inner, width),
            "mlp.fc2": (width, inner),
            "norm1": (width,),
            "norm2": (width,),
        }
        for name, shape in block.items():
            shapes[f"blocks.{index}.{name}.weight"], shapes[f"blocks.{index}.{name}.bias"] = shape, shape[:1]
        if "cls_token" in extra:
            shapes |= {f"blocks.{index}.ls{i}.scale_factor": (width,) for i in (1, 2)}
    return {prefix + name: shape for name, shape in shapes.items()}


def published_shapes(c: dict) -> dict[str, tuple]:
    """Names and shapes in openvla-7b's files (or a smaller network of the same make): timm towers, projector, Llama."""
    dino, siglip, hidden, inner = c["dino_hidden"], c["siglip_hidden"], c["hidden"], c["feed_forward"]
    patches, fused = (c["image_size"] // c["patch_size"]) ** 2, dino + siglip
    width = hidden // c["heads"] * c["key_value_heads"]
    tokens = {"cls_token": (1, 1, dino), "reg_token": (1, 4, dino)}
    pool = {"attn_pool.latent": (1, 1, siglip), "attn_pool.q.weight": (siglip, siglip)}
    shapes = vit("vision_backbone.featurizer.", dino, 4 * dino, c["dino_layers"] + 1, c["patch_size"], patches, tokens)
    shapes |= vit(
        "vision_backbone.fused_featurizer.",
        siglip,
        c["siglip_feed_forward"],
        c["siglip_layers"] + 1,
        c["patch_size"],
        patches,
        pool,
    )
    for name, shape in {"fc1": (4 * fused, fused), "fc2": (hidden, 4 * fused), "fc3": (hidden, hidden)}.items():
        shapes[f"projector.{name}.weight"], shapes[f"projector.{name}.bias"] = shape, shape[:1]
    rows = c["vocabulary"] + 64
    shapes |= {"language_model.model.embed_tokens.weight": (rows, hidden), "language_model.lm_head.weight": (rows, hidden)}
    shapes["language_model.model.norm.weight"] = (hidden,)
    for index in range(c["layers"]):
        layer = f"language_model.model.layers.{index}."
        for name, shape in {"q": (hidden, hidden), "k": (width, hidden), "v": (width, hidden), "o": (hidden, hidden)}.items():
            shapes[f"{layer}self_attn.{name}_proj.weight"] = shape
        for name, shape in {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}.items():
            shapes[f"{layer}mlp.{name}_proj.weight"] = shape
        shapes |= {f"{layer}{name}.weight": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
    return shapes


def test_every_parameter_of_the_7b_network_has_one_published_source_of_its_shape():
    with torch.device("meta"):
        policy = AutoregressivePolicy(
            AutoregressiveConfig(**OPENVLA_7B, proprio=False), contract(1, ("front",), execution_horizon=1), words()
        )
    assert sum(p.numel() for p in policy.parameters()) > 7.4e9
    shapes, used = published_shapes(OPENVLA_7B), {}
    for name, parameter in policy.named_parameters():
        source = published_source(name)
        shape = shapes[source.name]
        if source.third is not None:
            shape = (shape[0] // 3, *shape[1:])
        if name == "vision_backbone.featurizer.embeddings.position_embeddings":
            shape = (1, shape[1] + 1, shape[2])  # the class token's position, which timm has inside the class token
        if name == "vision_backbone.fused_featurizer.embeddings.position_embedding.weight":
            shape = shape[1:]
        assert tuple(parameter.shape) == shape, name
        used.setdefault(source.name, []).append(source.third)
    assert all(thirds in ([None], [0, 1, 2]) or sorted(thirds) == [0, 1, 2] for thirds in used.values())
    left = set(shapes) - set(used)
    assert all(".norm." in n or "attn_pool" in n or "featurizer.blocks.23." in n or "featurizer.blocks.26." in n for n in left)


def test_published_weights_are_copied_and_what_is_ours_is_named():
    policy = make("parallel", placeholders="learned", head="regression", key_value_heads=2)
    sizes = {**{name: getattr(policy.config, name) for name in OPENVLA_7B}, "vocabulary": policy.config.vocabulary}
    tensors = {name: torch.randn(shape) for name, shape in published_shapes(sizes).items()}
    kept = load_published(policy, tensors)
    assert {name.split(".")[0] for name in kept} == {
        "locator",
        "place_projector",
        "placeholders",
        "proprio_projector",
        "action_head",
    }
    attention = policy.vision_backbone.featurizer.encoder.layer[1].attention
    qkv = tensors["vision_backbone.featurizer.blocks.1.attn.qkv.weight"]
    assert torch.equal(torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]), qkv)
    head = {name: torch.randn(p.shape) for name, p in policy.named_parameters() if name.startswith("action_head.")}
    assert "action_head.model.mlp_resnet_blocks.1.ffn.1.weight" in head
    assert not any(name.startswith("action_head") for name in load_published(policy, tensors | head))


@torch.no_grad()
def test_a_tower_with_published_weights_computes_what_timm_computes():
    policy = make("parallel", key_value_heads=2, dino_heads=4)
    sizes = {**{name: getattr(policy.config, name) for name in OPENVLA_7B}, "vocabulary": policy.config.vocabulary}
    tensors = {name: 0.3 * torch.randn(shape) for name, shape in published_shapes(sizes).items()}
    load_published(policy, tensors)
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    dino = timm_features(tensors, "vision_backbone.featurizer.", ((pixels + 1) / 2 - mean) / std, heads=4, blocks=2)
    siglip = timm_features(tensors, "vision_backbone.fused_featurizer.", pixels, heads=2, blocks=2)
    torch.testing.assert_close(policy.vision_backbone(pixels), torch.cat([dino, siglip], -1), rtol=1e-4, atol=1e-4)


def timm_features(tensors, prefix, pixels, heads, blocks):
    """A timm vision transformer written out: patch features after ``blocks`` blocks, without the last norm."""
    w = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    functional = torch.nn.functional

    def norm(x, name):
        return functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    def linear(x, name):
        return functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    patch = w["patch_embed.proj.weight"].shape[-1]
    x = (
        functional.conv2d(pixels, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=patch)
        .flatten(2)
        .transpose(1, 2)
    )
    x = x + w["pos_embed"]
    first = [w[name].expand(len(x), -1, -1) for name in ("cls_token", "reg_token") if name in w]
    x = torch.cat([*first, x], dim=1)
    for index in range(blocks):
        block = f"blocks.{index}"
        q, k, v = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + w.get(f"{block}.ls1.scale_factor", 1.0) * linear((weights @ v).transpose(1, 2).flatten(2), f"{block}.attn.proj")
        inner = functional.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + w.get(f"{block}.ls2.scale_factor", 1.0) * linear(inner, f"{block}.mlp.fc2")
    return x[:, sum(part.shape[1] for part in first) :]


def test_published_weights_that_do_not_fit_are_refused_and_change_nothing():
    policy = make("parallel", key_value_heads=2)
    sizes = {**{name: getattr(policy.config, name) for name in OPENVLA_7B}, "vocabulary": policy.config.vocabulary}
    tensors = {name: torch.randn(shape) for name, shape in published_shapes(sizes).items()}
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    missing = {name: tensor for name, tensor in tensors.items() if name != "projector.fc2.bias"}
    with pytest.raises(ValueError, match="projector.fc2.bias"):
        load_published(policy, missing)
    with pytest.raises(ValueError, match="shape"):
        load_published(policy, tensors | {"projector.fc2.bias": torch.zeros(3)})
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
