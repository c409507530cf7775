"""Pooling, checked by hand on a tiny model; names, limits and messages; pinned Hub models."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import types

import pytest
import torch

from llmdpd_torchrl.prompts import (
    HuggingFaceEncoder,
    SmolLM2Encoder,
    TextEncoder,
    embed_texts,
    make_text_encoder,
)
from llmdpd_torchrl.prompts.encoders import resolve_commit
from llmdpd_torchrl.prompts.language_model import explained_loading, pool
from llmdpd_torchrl.utils.errors import ConfigError, PromptError

TEXTS = ["open the door", "close the window slowly and then stop now", "robot arm"]


def by_hand(folder, text, layer):
    """Mean over the tokens after the first, of the full model's hidden state, one text alone."""
    from transformers import AutoModel, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        full = AutoModel.from_pretrained(folder).eval()
        states = full(input_ids=ids, output_hidden_states=True).hidden_states
    total = torch.zeros(states[layer].shape[-1])
    for position in range(1, ids.shape[1]):
        total += states[layer][0, position]
    return total / (ids.shape[1] - 1)


def test_pool_skips_the_first_token_and_the_padding():
    hidden = torch.randn(2, 5, 3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    expected = torch.stack([hidden[0, 1:3].mean(0), hidden[1, 1:].mean(0)])
    torch.testing.assert_close(pool(hidden, mask), expected)
    hidden[:, 0] = 1e6  # the sink
    hidden[0, 3:] = -1e6  # padding
    torch.testing.assert_close(pool(hidden, mask), expected)


@pytest.mark.parametrize(("layer", "read"), [("middle", 2), (1, 1), (3, 3), (4, 4)])
def test_embedding_equals_the_hand_computation(tiny_folder, layer, read):
    encoder = HuggingFaceEncoder(tiny_folder, layer=layer, device="cpu")
    table = encoder.encode(TEXTS)
    assert table.shape == (3, 16)
    assert table.dtype == torch.float32
    for row, text in zip(table, TEXTS, strict=True):
        torch.testing.assert_close(row, by_hand(tiny_folder, text, read), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("layer", "layers"), [(3, 2), ("last", 4)])
@pytest.mark.parametrize("skip_first", [True, False])
def test_pooling_options_equal_the_hand_computation(tiny_folder, layer, layers, skip_first):
    from transformers import AutoModel, AutoTokenizer

    options = {"layer": layer, "layers": layers, "device": "cpu"}
    mean = HuggingFaceEncoder(tiny_folder, skip_first=skip_first, **options).encode(TEXTS)
    last = HuggingFaceEncoder(tiny_folder, pooling="last_token", **options).encode(TEXTS)
    top = 4 if layer == "last" else layer
    for row, text in enumerate(TEXTS):
        ids = AutoTokenizer.from_pretrained(tiny_folder)(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            full = AutoModel.from_pretrained(tiny_folder).eval()
            states = full(input_ids=ids, output_hidden_states=True).hidden_states
        averaged = torch.stack(states[top - layers + 1 : top + 1]).mean(0)[0]
        torch.testing.assert_close(mean[row], averaged[int(skip_first) :].mean(0))
        torch.testing.assert_close(last[row], averaged[-1])


def test_of_an_encoder_decoder_the_encoder_reads(tiny_folder, tmp_path):
    from transformers import AutoTokenizer, T5Config, T5EncoderModel, T5ForConditionalGeneration

    folder = tmp_path / "tiny-t5"
    config = T5Config(
        vocab_size=32, d_model=16, d_kv=4, d_ff=32, num_layers=4, num_heads=4,
        decoder_start_token_id=0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.save_pretrained(folder)
    table = HuggingFaceEncoder(folder, device="cpu").encode(TEXTS[:1])
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        full = T5EncoderModel.from_pretrained(folder).eval()
        states = full(input_ids=ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(table[0], states[2][0, 1:].mean(0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pooling": "max"}, "text_encoder.pooling is 'max': it must be 'mean' or 'last_token'"),
        ({"quantization": "2bit"}, "quantization is '2bit': it must be '8bit' or '4bit'"),
        ({"layers": 0}, "layers is 0: it must be greater than or equal to 1"),
        ({"layers": "two"}, "layers is 'two': it must be a valid integer"),
        ({"batch_size": 0}, "batch_size is 0: it must be"),
        ({"skip_first": "no"}, "skip_first is 'no': it must be a valid boolean"),
        ({"device": "gpu"}, "device is 'gpu': it must be one of torch's, such as cuda:0"),
        ({"dtype": 16}, "dtype is 16: it must be float32, bfloat16 or float16"),
        ({"dtype": "int8"}, "dtype is 'int8': it must be float32"),
        ({"layer": 0}, "layer is 0: it must be a number of at least 1, 'middle' or 'last'"),
        ({"layer": "top"}, "layer is 'top': it must be a number"),
    ],
)
def test_impossible_options(tiny_folder, options, words):
    with pytest.raises(ConfigError, match=words):
        HuggingFaceEncoder(tiny_folder, **{"device": "cpu", **options})


def test_more_layers_than_there_are_below(tiny_folder):
    with pytest.raises(PromptError, match="no 3 layers up to layer 2"):
        HuggingFaceEncoder(tiny_folder, layer=2, layers=3, device="cpu").encode(TEXTS)


@pytest.mark.parametrize(
    ("options", "package"),
    [({"device_map": "auto"}, "accelerate"), ({"quantization": "8bit"}, "bitsandbytes")],
)
def test_missing_packages_name_the_extra(tiny_folder, monkeypatch, options, package):
    monkeypatch.setitem(sys.modules, "accelerate", types.ModuleType("accelerate"))
    monkeypatch.setitem(sys.modules, package, None)
    encoder = HuggingFaceEncoder(tiny_folder, device="cpu", **options)
    (option,) = options
    words = rf'{option} of .* needs the package {package} .*llmdpd_torchrl\[quant\]"'
    with pytest.raises(PromptError, match=words):
        encoder.encode(TEXTS)


def test_options_are_handed_to_transformers(tiny_folder):
    encoder = HuggingFaceEncoder(tiny_folder, device="cpu", quantization="4bit", device_map="auto")
    placement = encoder._placement()
    assert placement["device_map"] == "auto"
    assert placement["quantization_config"].load_in_4bit
    assert encoder.identity["quantization"] == "4bit"
    assert HuggingFaceEncoder(tiny_folder, device="cpu")._placement() == {}


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batch_and_padding_change_nothing(tiny_folder, batch_size):
    together = HuggingFaceEncoder(tiny_folder, batch_size=batch_size, device="cpu").encode(TEXTS)
    alone = [HuggingFaceEncoder(tiny_folder, device="cpu").encode([text])[0] for text in TEXTS]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-6, rtol=1e-5)


def test_only_the_lower_layers_are_loaded(tiny_folder):
    _, model, layer = HuggingFaceEncoder(tiny_folder, device="cpu")._load()
    assert layer == 2
    assert len(model.layers) == 3


def test_identity_follows_the_weights_and_not_the_path(tiny_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_folder, copy)
    original = HuggingFaceEncoder(tiny_folder, device="cpu").identity
    assert HuggingFaceEncoder(copy, device="cpu").identity == original
    json.dumps(original)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert HuggingFaceEncoder(copy, device="cpu").identity != original
    changed = [
        HuggingFaceEncoder(tiny_folder, device="cpu", layer=1),
        HuggingFaceEncoder(tiny_folder, device="cpu", max_length=99),
        HuggingFaceEncoder(tiny_folder, device="cpu", pooling="last_token"),
        HuggingFaceEncoder(tiny_folder, device="cpu", layers=2),
        HuggingFaceEncoder(tiny_folder, device="cpu", skip_first=False),
        HuggingFaceEncoder(tiny_folder, device="cpu", dtype=torch.bfloat16),
    ]
    assert all(encoder.identity != original for encoder in changed)


def test_bfloat16_is_near_float32(tiny_folder):
    exact = HuggingFaceEncoder(tiny_folder, device="cpu").encode(TEXTS)
    rough = HuggingFaceEncoder(tiny_folder, device="cpu", dtype=torch.bfloat16).encode(TEXTS)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=0.05, rtol=0.05)
    assert not torch.equal(rough, exact)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([], "no prompt to embed"),
        (["open the door", " \n"], "prompt 1 is empty"),
        (["door"], "single token"),
        (["the door " * 20], "40 tokens and the limit is 32"),
    ],
)
def test_prompts_that_can_not_be_embedded(tiny_folder, texts, words):
    encoder = HuggingFaceEncoder(tiny_folder, max_length=32, device="cpu")
    with pytest.raises(PromptError, match=words):
        encoder.encode(texts)


def test_the_models_own_length_limit_counts_too(tiny_folder):
    with pytest.raises(PromptError, match="the limit is 64"):
        HuggingFaceEncoder(tiny_folder, device="cpu").encode(["the door " * 40])


def test_one_string_instead_of_a_list_is_a_programming_error(tiny_folder):
    with pytest.raises(TypeError, match="not one string"):
        HuggingFaceEncoder(tiny_folder, device="cpu").encode("open the door")


def test_layer_beyond_the_model(tiny_folder):
    with pytest.raises(PromptError, match=r"layer 5 is out of range: .* has 4 layers"):
        HuggingFaceEncoder(tiny_folder, layer=5, device="cpu").encode(TEXTS)


def test_non_finite_weights_are_reported(tiny_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "broken"
    shutil.copytree(tiny_folder, folder)
    weights = load_file(folder / "model.safetensors")
    weights["embed_tokens.weight"][4] = float("nan")  # "door"
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PromptError, match="non-finite embedding for 'open the door'"):
        HuggingFaceEncoder(folder, device="cpu").encode(["robot arm", "open the door"])


def test_a_cut_off_weights_file_is_reported(tiny_folder, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(tiny_folder, folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PromptError, match=r"cannot load the language model .*cut") as caught:
        HuggingFaceEncoder(folder, device="cpu").encode(TEXTS)
    assert "\n" not in str(caught.value)


def test_too_little_memory_is_said_before_loading(tiny_folder, monkeypatch):
    monkeypatch.setattr("llmdpd_torchrl.prompts.language_model.available_memory", lambda: 100)
    with pytest.raises(PromptError, match="GB for its weights and cpu has"):
        HuggingFaceEncoder(tiny_folder, device="cpu").encode(TEXTS)


def test_names(tiny_folder, tmp_path, monkeypatch):
    assert isinstance(make_text_encoder("smollm2"), SmolLM2Encoder)
    assert isinstance(make_text_encoder("owner/name"), HuggingFaceEncoder)
    assert make_text_encoder(tiny_folder).folder == tiny_folder
    assert isinstance(make_text_encoder(str(tiny_folder)), TextEncoder)
    for wrong in ("smolm2", "./absent", "a/b/c", ""):
        with pytest.raises(PromptError, match=f"unknown text encoder '{wrong}': give 'smollm2'"):
            make_text_encoder(wrong)
    with pytest.raises(PromptError, match=r"no config\.json"):
        make_text_encoder(tmp_path)
    (tmp_path / "smollm2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert make_text_encoder("smollm2").identity == SmolLM2Encoder().identity


def test_named_encoders_and_options(tiny_folder):
    llama = make_text_encoder("llama-3-8b")
    assert (llama.name, llama.dtype) == ("meta-llama/Meta-Llama-3-8B", torch.bfloat16)
    assert make_text_encoder({"model": "olmo-1b", "layers": 4}).layers == 4
    minilm = make_text_encoder({"model": "minilm", "pooling": "last_token"})
    assert (minilm.layer, minilm.skip_first, minilm.pooling) == ("last", False, "last_token")
    assert make_text_encoder({"model": "smollm2", "layer": 12}).layer == 12
    assert make_text_encoder({"model": str(tiny_folder), "revision": "x"}).revision == "x"
    with pytest.raises(ConfigError, match=r"text_encoder\.pool: there is no .*has pooling"):
        make_text_encoder({"model": "olmo-1b", "pool": "mean"})
    with pytest.raises(ConfigError, match=r"text_encoder\.dtype: .* has no .*has device"):
        make_text_encoder({"model": "smollm2", "dtype": "bfloat16"})
    with pytest.raises(ConfigError, match="ends with layer 15"):
        make_text_encoder({"model": "smollm2", "layer": 16})


def test_missing_transformers_names_the_extra(tiny_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PromptError, match=r'pip install "llmdpd_torchrl\[llm\]"'):
        HuggingFaceEncoder(tiny_folder, device="cpu").encode(TEXTS)


def test_importing_the_package_does_not_import_the_language_model_stack():
    code = (
        "import sys, llmdpd_torchrl.prompts as p\n"
        "e = p.make_text_encoder('smollm2'); e.identity\n"
        "heavy = {'transformers', 'gguf', 'huggingface_hub', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


hub = pytest.importorskip("huggingface_hub")
errors = pytest.importorskip("huggingface_hub.errors")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def refuse_to_connect(monkeypatch, error):
    def model_info(self, *args, **options):
        raise error

    monkeypatch.setattr(hub.HfApi, "model_info", model_info)


def response(status):
    client = __import__(errors.HTTPError.__module__.split(".")[0])  # httpx, or its successor
    return client.Response(status, request=client.Request("GET", "https://example.org"))


def test_a_commit_stands_for_itself(monkeypatch):
    refuse_to_connect(monkeypatch, AssertionError("asked the Hub"))
    assert resolve_commit("owner/name", COMMIT) == COMMIT


def test_a_cached_model_needs_no_connection(hub_cache, monkeypatch):
    refuse_to_connect(monkeypatch, AssertionError("asked the Hub"))
    ref = hub_cache / "models--owner--name" / "refs" / "main"
    ref.parent.mkdir(parents=True)
    ref.write_text(COMMIT)
    encoder = HuggingFaceEncoder("owner/name", device="cpu")
    assert encoder.identity["revision"] == COMMIT
    assert encoder.identity["model"] == "owner/name"


def test_offline_is_honoured_at_once(hub_cache, monkeypatch):
    refuse_to_connect(monkeypatch, AssertionError("asked the Hub"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PromptError, match=r"HF_HUB_OFFLINE is set and owner/name.*smollm2"):
        embed_texts(["open the door"], "owner/name", cache_dir=hub_cache)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (lambda: errors.RepositoryNotFoundError("404", response=response(404)), "no such model"),
        (lambda: errors.RevisionNotFoundError("404", response=response(404)), "no such revision"),
        (lambda: errors.GatedRepoError("403", response=response(403)), "licence must be accepted"),
        (lambda: errors.OfflineModeIsEnabled("off"), "HF_HUB_OFFLINE is set"),
        (lambda: errors.HTTPError("Name or service not known"), "cannot be reached"),
        (lambda: ConnectionError("refused"), "cannot be reached"),
    ],
)
def test_reasons_are_one_line_that_names_the_model(hub_cache, monkeypatch, error, words):
    refuse_to_connect(monkeypatch, error())
    with pytest.raises(PromptError, match=f"owner/name: .*{words}") as caught:
        resolve_commit("owner/name", "main")
    assert "\n" not in str(caught.value)


def test_the_cause_behind_a_wrapped_error_is_the_one_that_is_told():
    gated = errors.GatedRepoError("403", response=response(403))
    with pytest.raises(PromptError, match="licence"), explained_loading("owner/name"):
        raise OSError("You are trying to access a gated repo.\nMake sure ...") from gated


def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError), explained_loading("owner/name"):
        raise KeyError("not a loading error")


@pytest.mark.parametrize("prefix", [None, "base_model.model."])
def test_files_that_lack_weights_are_refused(tiny_folder, tmp_path, prefix):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "incomplete"
    shutil.copytree(tiny_folder, folder)
    weights = load_file(folder / "model.safetensors")
    if prefix is None:
        del weights["layers.0.mlp.up_proj.weight"]
    else:
        weights = {f"{prefix}{name}": weight for name, weight in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PromptError, match=r"lack \d+ weights, the first is ") as caught:
        HuggingFaceEncoder(folder, device="cpu").encode(TEXTS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("clip", {}),
        ("bart", {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2}),
    ],
)
def test_models_without_a_text_encoder_of_their_own_are_refused(tmp_path, kind, sizes):
    from transformers import AutoConfig

    AutoConfig.for_model(kind, **sizes).save_pretrained(tmp_path)
    with pytest.raises(PromptError, match=f"is of kind '{kind}', .* use a language model of text"):
        HuggingFaceEncoder(tmp_path, device="cpu").encode(TEXTS)


def test_code_of_a_model_is_never_run(tmp_path, monkeypatch):
    marker = tmp_path / "it-ran"
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(marker)!r}, 'w').close()")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(PromptError, match="code of its own, which is never run"):
        HuggingFaceEncoder(tmp_path, device="cpu").encode(TEXTS)
    assert not marker.exists()


def test_the_length_limit_is_an_option_of_every_encoder():
    encoder = make_text_encoder({"model": "smollm2", "max_length": 2048})
    assert encoder.identity["max_length"] == 2048
