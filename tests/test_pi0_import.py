"""A pi0 in transformers format becomes a checkpoint that acts as the library does, and nothing in it is executed."""

import argparse
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from policy_samples import SENTENCES, observation
from policy_samples import contract as sample_contract
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PI0Config, PI0ForConditionalGeneration

from policytrim_ros.core.contract import Camera, mismatches, robot_contract
from policytrim_ros.policies import checkpoint, pi0
from policytrim_ros.policies.checkpoint import CheckpointError
from policytrim_ros.policies.flow import FlowConfig, FlowPolicy
from policytrim_ros.policies.samplers import Sampler, log_prob, rollout

SIDE, PATCH, VOCABULARY = 32, 8, 320
GEMMA = dict(model_type="gemma", num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8)
CONTRACT = sample_contract()  # cameras of 32 x 18 px: 16:9 in the upper part of 32 x 32


def small_pi0() -> PI0ForConditionalGeneration:
    """SigLIP, projector, Gemma, expert and the padded 32 states and actions: a pi0 in everything but size."""
    torch.manual_seed(0)
    siglip = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    return PI0ForConditionalGeneration(
        PI0Config(
            vlm_config=dict(
                model_type="paligemma",
                image_token_id=VOCABULARY,  # beyond the embedding, as published
                projection_dim=32,
                text_config=dict(GEMMA, hidden_size=32, intermediate_size=48, vocab_size=VOCABULARY),
                vision_config=dict(
                    siglip, model_type="siglip_vision_model", image_size=SIDE, patch_size=PATCH, vision_use_head=False
                ),
            ),
            dit_config=dict(GEMMA, hidden_size=24, intermediate_size=40),
            chunk_size=6,
            num_inference_steps=3,
        )
    ).eval()


def gemma_like_tokenizer() -> Tokenizer:
    """Byte-level pieces with Gemma's special tokens, <image> beyond the embedding, and a post-processor of its own."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.ByteFallback()
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "\n", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=pieces, show_progress=False)
    )
    filler = VOCABULARY - tokenizer.get_vocab_size()
    tokenizer.add_tokens([f"<loc{i:04}>" for i in range(filler)])
    tokenizer.add_special_tokens(["<image>"])
    assert tokenizer.token_to_id("<image>") == VOCABULARY
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return tokenizer


@pytest.fixture(scope="module")
def library():
    return small_pi0()


@pytest.fixture
def published(tmp_path, library):
    """A directory as the library writes it."""
    directory = tmp_path / "pi0_small"
    library.save_pretrained(directory)
    gemma_like_tokenizer().save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<bos>", "pad_token": {"content": "<pad>"}}))
    pictures = {"rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    pictures |= {"size": {"max_height": SIDE, "max_width": SIDE}, "pad_size": {"height": SIDE, "width": SIDE}}
    (directory / "processor_config.json").write_text(json.dumps({"image_processor": pictures, "state_mean": None}))
    return directory


def imported(published, out, contract=CONTRACT):
    pi0.import_pi0(published, contract, out, {"recipe": "import"})
    return checkpoint.load(out)


@torch.no_grad()
def theirs(library, policy, seen, noise):
    """What the library samples from the same observation: its prompt, its picture tokens, its padding."""
    inputs, tokenizer = policy.inputs(seen), gemma_like_tokenizer()
    cameras, tokens = 2, (SIDE // PATCH) ** 2
    prompts = [f"{'<image>' * tokens * cameras}<bos>{sentence}\n" for sentence in seen.instruction]
    tokenizer.enable_padding(pad_id=0, pad_token="<pad>")
    rows = tokenizer.encode_batch(prompts, add_special_tokens=False)
    return library.sample_actions(
        state=F.pad(policy.state_features(inputs.state), (0, 32 - 14)),
        input_ids=torch.tensor([row.ids for row in rows]),
        pixel_values=F.pad(inputs.pixels, (0, 0, 0, SIDE - 18)),
        noise=noise,
        attention_mask=torch.tensor([row.attention_mask for row in rows]),
        pixel_attention_mask=torch.ones(len(rows), cameras, dtype=torch.bool),
    )


def test_it_predicts_what_the_library_samples(published, tmp_path, library):
    policy, manifest = imported(published, tmp_path / "ours")
    seen = observation(batch=3)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]
    expected = theirs(library, policy, seen, policy.noise(3, generators))
    robot = policy.to_robot(expected[..., :7], torch.from_numpy(seen.state))
    np.testing.assert_allclose(policy.predict(seen, seeds=[1, 2, 3]), robot.numpy(), rtol=0, atol=1e-5)
    assert manifest["made"]["imported"]["chunk_size"] == 6 and policy.config.denoising_steps == 3
    assert not mismatches(policy.contract, robot_contract({"front": (64, 36), "wrist": (64, 36)}))


def test_every_weight_has_its_place(published, tmp_path, library):
    policy, _ = imported(published, tmp_path / "ours")
    ours, weights = policy.state_dict(), library.state_dict()
    assert set(ours) == {f"pi0.{name}" for name in weights}
    assert all(torch.equal(ours[f"pi0.{name}"], tensor) for name, tensor in weights.items())


def test_the_names_of_the_published_weights_are_understood(published, tmp_path, library):
    """The hub has heads where the library has embeddings, and an older name for the vision tower."""
    weights, renamed = load_file(published / "model.safetensors"), {}
    for name, tensor in weights.items():
        name = name.replace("paligemma.model.language_model.model.embed_tokens", "paligemma.lm_head")
        name = name.replace("language_model.model.", "language_model.").replace("vision_tower.", "vision_tower.vision_model.")
        renamed[name] = tensor
    save_file(renamed, published / "model.safetensors", metadata={"format": "pt"})
    policy, _ = imported(published, tmp_path / "ours")
    assert all(torch.equal(policy.state_dict()[f"pi0.{name}"], tensor) for name, tensor in library.state_dict().items())


def test_the_three_billion_parameters_of_the_real_one_fit_the_same_class(tmp_path):
    PI0Config().save_pretrained(tmp_path)
    sizes, steps, chunk = pi0.sizes_of(tmp_path)
    cameras = (Camera("front", 224, 126), Camera("wrist", 224, 126))
    config = FlowConfig(horizon=chunk, denoising_steps=steps, vision="siglip", pi0=sizes)
    with torch.device("meta"):  # shapes without memory
        library = PI0ForConditionalGeneration(PI0Config())
        policy = FlowPolicy(config, replace(sample_contract(horizon=chunk), cameras=cameras), gemma_like_tokenizer())
    expected = {f"pi0.{name}": tensor.shape for name, tensor in library.state_dict().items()}
    assert {name: tensor.shape for name, tensor in policy.state_dict().items()} == expected
    assert sum(tensor.numel() for tensor in policy.parameters()) > 3e9 and (steps, chunk) == (10, 50)


def test_shards_are_put_together(published, tmp_path, library):
    (published / "model.safetensors").unlink()
    library.save_pretrained(published, max_shard_size="50KB")
    assert (published / "model.safetensors.index.json").exists() and not (published / "model.safetensors").exists()
    policy, manifest = imported(published, tmp_path / "ours")
    assert all(torch.equal(policy.state_dict()[f"pi0.{name}"], tensor) for name, tensor in library.state_dict().items())
    assert len(manifest["made"]["imported"]["files"]) > 4


def test_half_precision_on_disk_is_computed_in_float32(published, tmp_path, library):
    small_pi0().to(torch.bfloat16).save_pretrained(published)
    policy, _ = imported(published, tmp_path / "ours")
    assert all(parameter.dtype == torch.float32 for parameter in policy.parameters())


def test_the_samplers_explore_the_seven_actions_and_not_the_padding(published, tmp_path):
    policy, _ = imported(published, tmp_path / "ours")
    inputs, sampler = policy.inputs(observation()), Sampler(joint=True)
    context = policy.encode(inputs)
    chain = rollout(policy, context, policy.noise(2), sampler)
    assert chain.x.shape == (2, 4, 6, 32) and chain.actions.shape == (2, 6, 7)
    torch.testing.assert_close(log_prob(policy, context, chain, sampler), chain.log_prob, rtol=1e-4, atol=1e-4)
    x, tau = chain.x[:, 0], torch.ones(2)
    torch.testing.assert_close(chain.x[:, 1, :, 7:], (x - policy.velocity(context, x, tau) / 3)[..., 7:])


def test_the_checkpoint_can_be_trained(published, tmp_path):
    policy, _ = imported(published, tmp_path / "ours")
    policy.requires_grad_(True)
    inputs = policy.inputs(observation())
    loss = policy.losses(inputs, torch.zeros(2, 6, 7), generator=torch.Generator().manual_seed(0), repeats=2)["action"]
    loss.backward()
    assert policy.pi0.model.vlm.multi_modal_projector.linear.weight.grad.abs().sum() > 0


# -- refused --------------------------------------------------------------------------------------------------------


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refuses(published, tmp_path, words, contract=CONTRACT):
    with pytest.raises(CheckpointError, match=words):
        pi0.import_pi0(published, contract, tmp_path / "ours", {})
    assert not (tmp_path / "ours").exists()


def test_pickles_are_refused(published, tmp_path):
    weights = load_file(published / "model.safetensors")
    (published / "model.safetensors").unlink()
    torch.save(weights, published / "pytorch_model.bin")
    refuses(published, tmp_path, "pickle.*safetensors")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_directory_is_refused(published, tmp_path, name, damage):
    path = published / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refuses(published, tmp_path, "model.safetensors|weights cannot be read" if name == "model.safetensors" else name)


def test_code_named_in_the_configuration_is_not_looked_for(published, tmp_path):
    (published / "evil.py").write_text("raise SystemExit('executed')")
    config = json.loads((published / "config.json").read_text())
    config |= {"auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}, "_attn_implementation": "evil/kernels"}
    config["dit_config"] |= {"_attn_implementation": "evil/kernels", "auto_map": {"AutoModel": "evil.Model"}}
    (published / "config.json").write_text(json.dumps(config))
    policy, _ = imported(published, tmp_path / "ours")
    kept = (tmp_path / "ours" / "config.json").read_text()
    assert "evil" not in kept and policy.pi0.model.dit.config._attn_implementation == "sdpa"


def test_another_architecture_is_refused(published, tmp_path):
    change(published / "config.json", model_type="smolvla")
    refuses(published, tmp_path, "not the configuration of a PI0.*smolvla")


def test_another_language_model_inside_is_refused(published, tmp_path):
    config = json.loads((published / "config.json").read_text())
    config["dit_config"]["model_type"] = "llama"
    change(published / "config.json", dit_config=config["dit_config"])
    refuses(published, tmp_path, "Gemma as expert")


def test_a_missing_weight_is_named(published, tmp_path):
    weights = load_file(published / "model.safetensors")
    del weights["state_proj.bias"]
    save_file(weights, published / "model.safetensors", metadata={"format": "pt"})
    refuses(published, tmp_path, "missing keys.*state_proj.bias")


def test_a_weight_of_another_shape_is_refused(published, tmp_path):
    weights = load_file(published / "model.safetensors")
    weights["state_proj.bias"] = torch.zeros(3)
    save_file(weights, published / "model.safetensors", metadata={"format": "pt"})
    refuses(published, tmp_path, "state_proj.bias")


def test_a_weight_that_is_not_a_number_is_named(published, tmp_path):
    weights = load_file(published / "model.safetensors")
    weights["state_proj.bias"][3] = float("nan")
    save_file(weights, published / "model.safetensors", metadata={"format": "pt"})
    refuses(published, tmp_path, "state_proj.bias.*NaN")


def test_an_existing_checkpoint_is_not_overwritten(published, tmp_path):
    imported(published, tmp_path / "ours")
    with pytest.raises(CheckpointError, match="exists already"):
        pi0.import_pi0(published, CONTRACT, tmp_path / "ours", {})


def test_a_shard_outside_the_directory_is_refused(published, tmp_path):
    (published / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": {"state_proj.bias": "../elsewhere.safetensors"}}
    (published / "model.safetensors.index.json").write_text(json.dumps(index))
    refuses(published, tmp_path, "not a safetensors file of this directory")


def test_an_adapter_is_refused(published, tmp_path):
    (published / "adapter_config.json").write_text("{}")
    refuses(published, tmp_path, "merge")


def test_pictures_scaled_otherwise_are_refused(published, tmp_path):
    change(published / "processor_config.json", image_processor={"image_mean": [0.485, 0.456, 0.406]})
    refuses(published, tmp_path, "image_mean")


def test_cameras_that_do_not_fit_are_refused(published, tmp_path):
    refuses(published, tmp_path, "32x32", replace(CONTRACT, cameras=(Camera("front", 64, 36),)))


def test_a_tokenizer_of_another_network_is_refused(published, tmp_path):
    change(published / "tokenizer_config.json", bos_token="<begin>")
    refuses(published, tmp_path, "<begin>")


def test_a_picture_token_in_an_instruction_is_refused(published, tmp_path):
    policy, _ = imported(published, tmp_path / "ours")
    with pytest.raises(ValueError, match="picture"):
        policy.words(["put the <image> into the box"])


# -- the command ----------------------------------------------------------------------------------------------------


def run(*words):
    parser = argparse.ArgumentParser()
    pi0.add_arguments(parser)
    return pi0.main(parser.parse_args([str(word) for word in words]))


def test_the_command_makes_a_checkpoint_from_a_contract_in_yaml(published, tmp_path, capsys):
    contract = {
        "cameras": [{"name": "front", "width": 32, "height": 18}, {"name": "wrist", "width": 32, "height": 18}],
        "prediction_horizon": 6,
        "execution_horizon": 3,
        "tasks": ["tape_box"],
        "instructions": SENTENCES,
        "normalisation": {
            "state": {"q01": [-1.0] * 14, "q99": [1.0] * 14},
            "actions": {"q01": [-0.5] * 6 + [0.0], "q99": [0.5] * 6 + [0.07]},
        },
    }
    (tmp_path / "contract.yaml").write_text(yaml.safe_dump(contract))
    assert run(published, "--contract", tmp_path / "contract.yaml", "--out", tmp_path / "ours") == 0
    assert "H = 6" in capsys.readouterr().out
    policy, _ = checkpoint.load(tmp_path / "ours")
    assert policy.predict(observation(), seeds=[0, 1]).shape == (2, 6, 7)
    assert policy.contract.execution_horizon == 3


@pytest.mark.parametrize(
    "text, words", [("{", "cannot be read"), ("[]", "mapping"), ("speed: 3", "speed"), ("tasks: [a]", "state")]
)
def test_the_command_says_what_is_wrong_with_a_contract(published, tmp_path, capsys, text, words):
    (tmp_path / "contract.yaml").write_text(text)
    assert run(published, "--contract", tmp_path / "contract.yaml", "--out", tmp_path / "ours") == 1
    assert words in capsys.readouterr().err
