"""Caches and calibration of models that are compiled, wrapped, adapted or offloaded: they work, or one line says why not."""

import contextlib
import copy
import os

import pytest
import torch
from torch import nn

import spectralquant as sq
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.errors import ProfileError, UnsupportedModelError
from spectralquant.hooks.wrappers import model_device, usable_model
from spectralquant.models.identity import weights_sha256
from spectralquant.models.weights import embedding_weight
from spectralquant.text.read import load_text
from tests.conftest import profile_of, small_tokenizer
from tests.conftest import random_model as any_model

TIERS = ("exact", "hot", "warm", "cold")


def random_model(**changes):
    return any_model(num_hidden_layers=2, **changes)


@contextlib.contextmanager
def one_process(port=29_531):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def process_group():
    with one_process():
        yield


@pytest.fixture(scope="module")
def profile():
    return profile_of("llama", num_hidden_layers=2)[1]


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 512, (1, 604), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def logits(called, model, profile, tier, ids):
    """Of the last token, when `called` reads a cache made for `model`, after a prefill and some steps."""
    cache = sq.SpectralCache(model, profile, tier=tier, background=False)
    called(input_ids=ids[:, :600], past_key_values=cache, use_cache=True)
    for at in range(600, ids.shape[1]):
        found = called(input_ids=ids[:, at : at + 1], past_key_values=cache, use_cache=True).logits
    assert cache.coded_tokens == 384 - 4
    return found[:, -1].float()


@pytest.fixture(scope="module")
def expected(profile, ids):
    model = random_model()
    return {tier: logits(model, model, profile, tier, ids) for tier in TIERS}


def calibrated(model, **options):
    settings = CalibrationSettings(window=384, tiers=("hot",), held_out_windows=1, held_out_window=512, **options)
    return sq.calibrate(
        model, small_tokenizer(), list(load_text("builtin:pydoc")), steps=2, settings=settings, name="x"
    )


@pytest.fixture(scope="module")
def plain_profile():
    return calibrated(random_model())


def compiled_module(model):
    return torch.compile(model, backend="eager")


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def compiled_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def compiled_layers(model):
    for layer in model.model.layers:
        layer.compile(backend="eager")
    return model


COMPILED = (compiled_module, compiled_in_place, compiled_forward, compiled_layers)


@pytest.mark.parametrize("tier", ("hot", "cold"))
@pytest.mark.parametrize("compiled", COMPILED, ids=lambda f: f.__name__)
@pytest.mark.slow
def test_compiled_models_read_caches(compiled, tier, profile, ids, expected):
    torch._dynamo.reset()
    model = compiled(random_model())
    assert torch.allclose(logits(model, model, profile, tier, ids), expected[tier], atol=1e-4)


@pytest.mark.parametrize("compiled", COMPILED, ids=lambda f: f.__name__)
def test_compiled_models_are_calibrated_and_packed_as_they_are(compiled, plain_profile, profile, ids):
    torch._dynamo.reset()
    model = compiled(random_model())
    assert calibrated(model).id == plain_profile.id
    packet = sq.pack_prompt(model, profile, ids)[0]
    assert bytes(packet.data) == bytes(sq.pack_prompt(random_model(), profile, ids)[0].data)
    assert sq.unpack_cache(model, profile, packet).get_seq_length() == ids.shape[1]


def test_generate_of_a_compiled_model(profile, ids):
    torch._dynamo.reset()
    model = torch.compile(random_model(), backend="eager")
    made = model.generate(
        ids, past_key_values=sq.SpectralCache(model, profile, tier="hot"), max_new_tokens=5, do_sample=False
    )
    plain = random_model()
    cache = sq.SpectralCache(plain, profile, tier="hot")
    assert torch.equal(made, plain.generate(ids, past_key_values=cache, max_new_tokens=5, do_sample=False))


@pytest.mark.parametrize("wrap", (nn.DataParallel, nn.parallel.DistributedDataParallel))
@pytest.mark.parametrize("tier", TIERS)
def test_data_parallel_models(wrap, tier, process_group, profile, plain_profile, ids, expected):
    model = wrap(random_model())
    assert weights_sha256(model) == weights_sha256(random_model())
    assert torch.allclose(logits(model, model, profile, tier, ids), expected[tier], atol=1e-5)
    if tier == "exact":
        assert calibrated(model).id == plain_profile.id
        assert len(sq.pack_prompt(model, profile, ids)) == 1


@pytest.mark.parametrize("tier", TIERS)
def test_fully_sharded_models(tier, process_group, profile, plain_profile, ids, expected):
    from torch.distributed.fsdp import fully_shard

    model = random_model()
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    assert weights_sha256(model) == weights_sha256(random_model())
    assert torch.allclose(logits(model, model, profile, tier, ids), expected[tier], atol=1e-5)
    if tier == "exact":
        assert calibrated(model).id == plain_profile.id
        packet = sq.pack_prompt(model, profile, ids)[0]
        assert bytes(packet.data) == bytes(sq.pack_prompt(random_model(), profile, ids)[0].data)


def test_models_sharded_as_a_whole_are_refused(process_group, profile):
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(random_model(), device_id=torch.device("cpu"))
    for use in (lambda: sq.SpectralCache(model, profile), lambda: calibrated(model), lambda: weights_sha256(model)):
        with pytest.raises(UnsupportedModelError, match="sharded by FullyShardedDataParallel"):
            use()


class _Policy(nn.Module):
    """As trl wraps a model for reinforcement learning."""

    def __init__(self, model):
        super().__init__()
        self.pretrained_model = model


def test_nested_wrappers_and_models_of_nobody(process_group):
    model = random_model()
    nested = torch.compile(nn.DataParallel(_Policy(model)), backend="eager")
    assert usable_model(nested) is model
    with pytest.raises(UnsupportedModelError, match="not a transformers model"):
        sq.SpectralCache(nn.Linear(3, 3))


# Adapters


def adapted(model, *, trained=True, **options):
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    options = {"r": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "down_proj"]} | options
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**options)).eval()
    if trained:
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_B" in name or "modules_to_save" in name:
                    parameter.normal_(std=0.3)
    return wrapped


def test_an_untrained_adapter_changes_nothing(profile, plain_profile, ids, expected):
    model = adapted(random_model(), trained=False)
    assert weights_sha256(model) == weights_sha256(random_model())
    for tier in TIERS:
        assert torch.allclose(logits(model, model, profile, tier, ids), expected[tier], atol=1e-4)
    assert calibrated(model).sidecar.model == plain_profile.sidecar.model


def test_generate_through_an_adapter(profile, ids):
    model = adapted(random_model(), trained=False)
    cache = sq.SpectralCache(model, profile, tier="hot")
    made = model.generate(input_ids=ids, past_key_values=cache, max_new_tokens=5, do_sample=False)
    plain = random_model()
    cache = sq.SpectralCache(plain, profile, tier="hot")
    assert torch.equal(made, plain.generate(ids, past_key_values=cache, max_new_tokens=5, do_sample=False))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("options", ({}, {"modules_to_save": ["lm_head"]}, {"use_rslora": True}), ids=str)
def test_an_adapter_is_the_model_that_merging_it_makes(dtype, options):
    model = adapted(random_model().to(dtype), **options)
    alone = weights_sha256(model)
    with model.disable_adapter():
        assert weights_sha256(model) == weights_sha256(random_model().to(dtype))
    assert weights_sha256(model) == alone
    merged = copy.deepcopy(model).merge_and_unload()
    assert weights_sha256(merged) == alone != weights_sha256(random_model().to(dtype))
    model.merge_adapter()
    assert weights_sha256(model) == alone


@pytest.mark.parametrize("kind", ({}, {"use_dora": True}), ids=("lora", "dora"))
def test_a_trained_adapter_needs_a_profile_of_its_own(kind, profile, ids):
    model = adapted(random_model(), **kind)
    with pytest.raises(ProfileError, match="Calibrate a profile"):
        sq.SpectralCache(model, profile)
    with model.disable_adapter():
        sq.SpectralCache(model, profile)
    mine = calibrated(model)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in n for n in trained)
    logits(model, model, mine, "hot", ids)
    if not kind:
        merged = copy.deepcopy(model).merge_and_unload()
        logits(merged, merged, mine, "hot", ids)


def test_the_adapter_in_use_decides(profile):
    peft = pytest.importorskip("peft")
    model = adapted(random_model(), trained=False)
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False))
    first = weights_sha256(model)
    model.set_adapter("other")
    assert weights_sha256(model) != first
    model.set_adapter("default")
    assert weights_sha256(model) == first


def test_learnt_prompts_are_refused(profile):
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = peft.get_peft_model(random_model(), config)
    with pytest.raises(UnsupportedModelError, match="learnt prompt"):
        sq.SpectralCache(model, profile)


# Offloaded weights


def disk_layer(model, folder):
    from transformers import AutoModelForCausalLM

    model.save_pretrained(folder / "model")
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    places |= {"model.layers.0": "cpu", "model.layers.1": "disk"}
    return AutoModelForCausalLM.from_pretrained(folder / "model", device_map=places, offload_folder=folder / "off")


def all_on_disk(model, folder):
    from accelerate import disk_offload

    return disk_offload(model, folder / "off", execution_device=torch.device("cpu"))


def all_on_host(model, folder):
    from accelerate import cpu_offload

    return cpu_offload(model, execution_device=torch.device("cpu"))


OFFLOADED = (disk_layer, all_on_disk, all_on_host)


@pytest.mark.parametrize("tied", (False, True), ids=("untied", "tied"))
@pytest.mark.parametrize("offload", OFFLOADED, ids=lambda f: f.__name__)
def test_offloaded_weights_are_the_same_model(offload, tied, tmp_path):
    plain = random_model(tie_word_embeddings=tied)
    model = offload(random_model(tie_word_embeddings=tied), tmp_path).eval()
    assert weights_sha256(model) == weights_sha256(plain)
    assert torch.equal(embedding_weight(model), plain.get_input_embeddings().weight)
    assert model_device(model) == torch.device("cpu")
    assert sq.bind(model).geometry == sq.bind(plain).geometry


@pytest.mark.parametrize("offload", OFFLOADED, ids=lambda f: f.__name__)
def test_offloaded_weights_work(offload, tmp_path, profile, plain_profile, ids, expected):
    model = offload(random_model(), tmp_path).eval()
    for tier in TIERS:
        assert torch.allclose(logits(model, model, profile, tier, ids), expected[tier], atol=1e-5)
    flags = [p.requires_grad for p in model.parameters()]
    mine = calibrated(model)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert mine.id == plain_profile.id
    assert calibrated(model, metric="attention").id == calibrated(random_model(), metric="attention").id
    packet = sq.pack_prompt(model, profile, ids)[0]
    assert bytes(packet.data) == bytes(sq.pack_prompt(random_model(), profile, ids)[0].data)
    assert sq.SpectralCache.unpack(model, profile, packet).get_seq_length() == ids.shape[1]


def test_a_model_without_weights_is_refused(profile):
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(random_model().config)
    for use in (lambda: sq.SpectralCache(model), lambda: calibrated(model), lambda: profile.require_model(model)):
        with pytest.raises(UnsupportedModelError, match="has no weights"):
            use()


def test_caches_refuse_layers_on_several_devices(profile):
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    model = random_model()
    add_hook_to_module(model.model.layers[1].self_attn, AlignDevicesHook(execution_device="cuda:1"))
    for use in (lambda: sq.SpectralCache(model), lambda: sq.pack_prompt(model, profile, torch.zeros(1, 9, dtype=int))):
        with pytest.raises(UnsupportedModelError, match="spread over cpu, cuda:1"):
            use()
