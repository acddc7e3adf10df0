"""Other people's checkpoints brought in: written as their own code writes them, read as what they say."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner

from distillkit.cli.main import cli
from distillkit.core import run_folder
from distillkit.core.errors import CorruptError, DistillkitError, UsageError
from distillkit.student.interchange import hf_tokenizer, hf_weights, importing
from distillkit.student.model.gpt import GPT, GPTConfig
from distillkit.student.trained import Trained
from distillkit.student.training.optimizers import flatten
from support.interchange import RANKS, TINY, run_with
from support.students import TEXTS, f64, lively, tokenizer

SIZES = replace(TINY, context=24, width=32, hidden=64)
NANO = replace(
    SIZES, tied=False, activation="relu", positions="sinusoidal", attention_out=False, final_norm=False, head_bias=True
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTILLKIT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str) -> Any:
    return CliRunner().invoke(cli, list(arguments), catch_exceptions=True)


def refused(*arguments: str) -> str:
    failed = command(*arguments).exception
    assert isinstance(failed, DistillkitError), failed
    return str(failed)


@pytest.fixture
def words(home: Path) -> str:
    """A folder with the tokenizer of the tests."""
    tokenizer().save(home / "words")
    return "words"


def numbers(model: GPT) -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.array(value) for name, value in flatten(model.parameters()).items()}


def as_seed(model: GPT) -> dict[str, np.ndarray[Any, Any]]:
    """The weights as nanoGPT-on-MLX saves them: `model.save_weights("checkpoint_N.npz")`."""
    theirs = {
        f"blocks.{i}.{t}": f"blocks.{i}.{o}"
        for i in range(model.config.layers)
        for o, t in importing.MLX_NANOGPT_NAMES.items()
    }
    theirs |= {"token_embedding": "tokens", "position_embedding": "positions", "ln_f": "norm"}
    own = numbers(model)
    saved = {f"{t}.{n}": own[f"{o}.{n}"] for t, o in theirs.items() for n in ("weight", "bias") if f"{o}.{n}" in own}
    return saved | {"lm_head.weight": own["tokens.weight" if model.config.tied else "out.weight"]}


def as_nanogpt(model: GPT) -> dict[str, np.ndarray[Any, Any]]:
    theirs = {"ln_1": "attention_norm", "attn.c_attn": "attention.qkv", "attn.c_proj": "attention.out"}
    theirs |= {"ln_2": "hidden_norm", "mlp.c_fc": "up", "mlp.c_proj": "down"}
    names = {f"transformer.h.{i}.{t}": f"blocks.{i}.{o}" for i in range(model.config.layers) for t, o in theirs.items()}
    names |= {"transformer.wte": "tokens", "transformer.wpe": "positions", "transformer.ln_f": "norm"}
    own = numbers(model)
    saved = {f"{t}.{n}": own[f"{o}.{n}"] for t, o in names.items() for n in ("weight", "bias") if f"{o}.{n}" in own}
    saved["lm_head.weight"] = saved["transformer.wte.weight"]
    saved |= {f"transformer.h.{i}.attn.bias": np.ones((1, 1, 4, 4), np.float32) for i in range(model.config.layers)}
    return {f"_orig_mod.{name}": value for name, value in saved.items()}


def as_nano(model: GPT) -> dict[str, np.ndarray[Any, Any]]:
    own, saved = numbers(model), {}
    for i in range(model.config.layers):
        block = f"blocks.{i}"
        for what in ("weight", "bias"):
            parts = np.split(own[f"{block}.attention.qkv.{what}"], 3)
            saved |= {f"{block}.{name}.{what}": part for name, part in zip("QKV", parts, strict=True)}
            saved[f"{block}.attn_norm.{what}"] = own[f"{block}.attention_norm.{what}"]
            saved[f"{block}.mlp_norm.{what}"] = own[f"{block}.hidden_norm.{what}"]
            saved[f"{block}.mlp.0.{what}"], saved[f"{block}.mlp.2.{what}"] = (
                own[f"{block}.{n}.{what}"] for n in ("up", "down")
            )
        saved[f"{block}.causal_mask"] = np.ones((1, 4, 4), np.float32)
    saved |= {"input_embedding.weight": own["tokens.weight"], "pos_embedding": np.array(model._sinusoids)[None]}
    return saved | {"lm_head.weight": own["out.weight"], "lm_head.bias": own["out.bias"]}


def assert_same(model: GPT, run: str) -> None:
    """The student of a run says what a model says."""
    student = Trained.load(run_folder.find_run(run).path)
    assert student.tokenizer.fingerprint == tokenizer().fingerprint
    tokens = mx.array(np.random.default_rng(0).integers(0, model.config.vocab_size, (2, model.config.context)))
    from distillkit.student.generation.generate import compute_logits

    model.eval()
    np.testing.assert_allclose(f64(student.logits(tokens)), f64(compute_logits(model, model(tokens))), atol=1e-5)


# ---------------------------------------------------------------------------------------------- nanoGPT-on-MLX


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("told", ["heads", "config", "meta"])
def test_a_seeds_checkpoint_becomes_a_run(home: Path, words: str, tied: bool, told: str) -> None:
    model = lively(replace(SIZES, tied=tied))
    np.savez(home / "checkpoint_20000.npz", **as_seed(model))
    more = ["--heads", "4"] if told == "heads" else []
    if told == "config":
        (home / "config.json").write_text(json.dumps({"n_heads": 4, "dropout": 0.1}))
    if told == "meta":
        (home / "checkpoint_20000_meta.json").write_text(json.dumps({"iteration": 5, "config": {"n_heads": 4}}))
    said = command("import", "checkpoint_20000.npz", "--tokenizer", words, "--name", "seed", *more)
    assert said.exit_code == 0, said.exception
    assert_same(model, "seed")
    run = run_folder.find_run("seed/1")
    assert run.info["imported"]["kind"] == "nanoGPT-on-MLX"
    assert run.info["training"] == {"steps": 20000}
    assert ("the head differs from the token embedding" in said.output) is not tied


def test_heads_that_nobody_said_are_the_seeds_and_told(home: Path, words: str) -> None:
    np.savez(home / "a b.npz", **as_seed(lively(replace(SIZES, heads=8))))
    said = command("import", "a b.npz", "--tokenizer", words)
    assert "assuming 8 (--heads N)" in said.output
    assert_same(lively(replace(SIZES, heads=8)), "a_b")


@pytest.mark.slow
def test_an_imported_student_lives_like_any_other(home: Path, words: str) -> None:
    np.savez(home / "seed.npz", **as_seed(lively(SIZES)))
    (home / "small.toml").write_text('name = "small"\n[data]\nsource = "tales"\nstories = 60\nheld_out = 0.2\n')
    brought = command("import", "seed.npz", "--tokenizer", words, "--heads", "4", "--recipe", "small.toml", "--json")
    assert json.loads(brought.stdout)["run"] == "seed/1"
    for words_ in (
        ["judge", "seed/1", "--samples", "2", "--set", "sampling.max_tokens=4"],
        ["bench", "seed/1", "--steps", "1", "--batch", "2"],
        ["generate", "seed/1", "--prompt", "One day", "--max-tokens", "4"],
        ["compare", "seed/1", "seed/1"],
        ["export", "seed/1", "--to", "there", "--format", "hf"],
        ["runs"],
    ):
        said = command(*words_)
        assert said.exit_code == 0, (words_, said.exception)
    assert run_folder.find_run("seed/1").info["judges"]["perplexity"]["perplexity"]["value"] > 1
    proof = json.loads((home / "there" / "proof.json").read_text())
    assert proof["largest_difference"] < 1e-3
    assert proof["greedy"] == {"tokens": 16, "alike": 16}  # as many as its context takes
    (home / "more.toml").write_text(
        'extends = "small.toml"\nname = "more"\n[tokenizer]\nkind = "seed/1"\n'
        '[student]\nfrom = "seed/1"\nlayers = 2\nheads = 4\nwidth = 32\nhidden = 64\ncontext = 24\n'
        "[train]\nsteps = 2\nbatch_size = 2\nwarmup = 1\n[sampling]\ncount = 1\nmax_tokens = 2\n"
    )
    warm = command("run", "more.toml")
    assert warm.exit_code == 0, warm.exception
    assert "Starting from the weights of seed/1" in warm.output
    beside = command("compare", "seed/1", "more/1")
    assert beside.exit_code == 0, beside.exception
    assert "not comparable" not in beside.output
    assert "student.from" in refused("train", "seed/1")


def test_gpt2s_tokens_are_known_by_their_number(home: Path) -> None:
    if not RANKS.is_file():
        pytest.skip("GPT-2's ranks are not at hand")
    model = lively(GPTConfig(50304, layers=1, heads=2, width=4, hidden=8, context=8))
    np.savez(home / "padded.npz", **as_seed(model))
    said = command("import", "padded.npz", "--heads", "2", "--ranks", str(RANKS))
    assert said.exit_code == 0, said.exception
    assert "47 of its 50,304 vocabulary rows belong to no token" in said.output
    student = Trained.load(run_folder.find_run("padded").path)
    assert student.model.head[0].shape == (50257, 4)


# ---------------------------------------------------------------------------------------------- what is wrong


def test_what_is_missing_or_wrong_is_said(home: Path, words: str) -> None:
    saved = as_seed(lively(SIZES))
    np.savez(home / "a.npz", **{k: v for k, v in saved.items() if k != "blocks.1.ff.fc2.bias"})
    np.savez(home / "b.npz", **{**saved, "ln_f.weight": np.ones(5)})
    np.savez(home / "c.npz", other=np.ones(3))
    np.savez(home / "d.npz", **saved)
    (home / "e.npz").write_bytes((home / "d.npz").read_bytes()[:3000])
    (home / "f.bin").write_bytes(b"1")
    (home / "folder").mkdir()
    assert "lacks blocks.1.ff.fc2.bias" in refused("import", "a.npz", "--tokenizer", words, "--heads", "4")
    assert "inconsistent shapes: norm.weight" in refused("import", "b.npz", "--tokenizer", words, "--heads", "4")
    assert "no token_embedding.weight" in refused("import", "c.npz")
    assert "a vocabulary of 300 tokens does not identify one" in refused("import", "d.npz", "--heads", "4")
    assert "5 heads do not divide" in refused("import", "d.npz", "--heads", "5", "--tokenizer", words)
    assert "not a valid run name" in refused("import", "d.npz", "--heads", "4", "--tokenizer", words, "--name", "../x")
    assert "cannot be read" in refused("import", "e.npz")
    assert "f.bin cannot be imported" in refused("import", "f.bin")
    assert "no config.json" in refused("import", "folder")
    assert run_folder.all_runs() == []


class Evil:
    """A pickle that runs code when it is read."""

    def __reduce__(self) -> Any:
        return Path("ran").touch, ()


def test_arrays_that_are_pickles_are_refused(home: Path) -> None:
    evil = np.array([Evil()], dtype=object)
    np.savez(home / "evil.npz", **{"token_embedding.weight": evil})
    with pytest.raises(UsageError, match="may run code"):
        importing.read_model(home / "evil.npz", None, None, None)
    assert not (home / "ran").exists()


# ---------------------------------------------------------------------------------------------- PyTorch


@pytest.mark.slow
@pytest.mark.peer
def test_a_pickle_that_wants_to_run_code_is_refused(home: Path, peer: Any) -> None:
    torch = peer("torch")
    torch.save({"model": {}, "evil": Evil()}, home / "evil.pt")
    (home / "plain.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(UsageError, match="might run code"):
            importing.read_model(home / name, None, None, None)
    (home / "noise.pt").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises((CorruptError, UsageError)):
        importing.read_model(home / "noise.pt", None, None, None)
    assert not (home / "ran").exists()


def test_without_torch_it_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    (home / "a.pt").write_bytes(b"")
    assert 'pip install "distillkit[torch]"' in refused("import", "a.pt")


@pytest.mark.slow
@pytest.mark.peer
@pytest.mark.parametrize("bias", [True, False])
def test_a_nanogpt_checkpoint_becomes_a_run(home: Path, words: str, bias: bool, peer: Any) -> None:
    torch = peer("torch")
    model = lively(replace(SIZES, bias=bias))
    state = {name: torch.tensor(value) for name, value in as_nanogpt(model).items()}
    arguments = {
        "n_layer": 2,
        "n_head": 4,
        "n_embd": 32,
        "block_size": 24,
        "bias": bias,
        "vocab_size": 300,
        "dropout": 0.0,
    }
    torch.save({"model": state, "model_args": arguments, "iter_num": 77, "optimizer": {}}, home / "ckpt.pt")
    said = command("import", "ckpt.pt", "--tokenizer", words)
    assert said.exit_code == 0, said.exception
    assert_same(model, "ckpt")
    assert run_folder.find_run("ckpt").info["training"] == {"steps": 77}


@pytest.mark.slow
@pytest.mark.peer
@pytest.mark.parametrize("table", ["sinusoids", "another"])
def test_a_nano_checkpoint_becomes_a_run(home: Path, words: str, table: str, peer: Any) -> None:
    torch = peer("torch")
    model = lively(NANO)
    saved = as_nano(model)
    if table == "another":
        saved["pos_embedding"] = saved["pos_embedding"] * 0.5
        model._sinusoids = model._sinusoids * 0.5
    state = {name: torch.tensor(value) for name, value in saved.items()}
    config = {
        "vocab_size": 300,
        "context_len": 24,
        "embedding_dim": 32,
        "num_layers": 2,
        "num_heads": 4,
        "dropout": 0.0,
    }
    torch.save({"model_state_dict": state, "config": config, "step": 3}, home / "final.pt")
    said = command("import", "final.pt", "--tokenizer", words)
    assert said.exit_code == 0, said.exception
    assert "with another tokenizer, grades are meaningless until it is trained further" in said.output
    assert_same(model, "final")
    student = Trained.load(run_folder.find_run("final").path)
    assert student.model.config.positions == ("sinusoidal" if table == "sinusoids" else "learned")


# ---------------------------------------------------------------------------------------------- transformers


@pytest.mark.parametrize(
    "shape",
    [
        replace(SIZES, activation="gelu_tanh"),
        replace(SIZES, tied=False, activation="relu", hidden=128),
        replace(SIZES, positions="rope", norm="rmsnorm", activation="swiglu", bias=False, kv_heads=2),
    ],
)
def test_an_export_comes_back_as_it_went(home: Path, shape: GPTConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with(shape)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert command("export", run.name, "--to", "there", "--format", "hf").exit_code == 0
    said = command("import", "there", "--name", "back")
    assert said.exit_code == 0, said.exception
    model = Trained.load(run.path).model
    assert isinstance(model, GPT)
    assert_same(model, "back")


LLAMA = {
    "model_type": "llama",
    "vocab_size": 300,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": 32,
    "intermediate_size": 64,
    "rms_norm_eps": 1e-5,
}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_parameters": {"rope_theta": 1e4}, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_theta": 5e5},
    ],
)
def test_a_llama_with_another_rope_is_refused(rope: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="scaled RoPE or a rope_theta other than 10000"):
        hf_weights.gpt_config_from_hf({**LLAMA, **rope})


@pytest.mark.parametrize(
    "rope",
    [{}, {"rope_scaling": None}, {"rope_scaling": {"type": "default"}}, {"rope_parameters": {"rope_theta": 1e4}}],
)
def test_a_llama_with_the_plain_rope_is_one_of_ours(rope: dict[str, Any]) -> None:
    assert hf_weights.gpt_config_from_hf({**LLAMA, **rope}).positions == "rope"


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize("file", ["safetensors", "bin"])
def test_a_folder_that_transformers_wrote_becomes_a_run(home: Path, file: str, peer: Any) -> None:
    torch, transformers = peer("torch"), peer("transformers")
    config = transformers.GPT2Config(
        vocab_size=300, n_positions=24, n_embd=32, n_layer=2, n_head=4, bos_token_id=299, eos_token_id=299
    )
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(home / "gpt2")
    if file == "bin":
        (home / "gpt2" / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), home / "gpt2" / "pytorch_model.bin")
    hf_tokenizer.write_tokenizer(tokenizer(), home / "gpt2", 24)
    said = command("import", "gpt2")
    assert said.exit_code == 0, said.exception
    student = Trained.load(run_folder.find_run("gpt2").path)
    tokens = [299, *tokenizer().encode(TEXTS[0])][:24]
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens])).logits.numpy()
    np.testing.assert_allclose(f64(student.logits(mx.array([tokens]))), expected, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_the_folder_that_the_seed_publishes_needs_no_remote_code(home: Path, tied: bool) -> None:
    model, folder = lively(replace(SIZES, tied=tied)), home / "published"
    folder.mkdir()
    names = {n: f"transformer.{n}".replace(".ff.fc", ".mlp.fc") for n in as_seed(model)}
    mx.save_safetensors(str(folder / "model.safetensors"), {names[n]: mx.array(v) for n, v in as_seed(model).items()})
    (folder / "config.json").write_text(json.dumps({"model_type": "nanogpt", "n_head": 4, "vocab_size": 300}))
    (folder / "modeling_nanogpt.py").write_text("raise SystemExit('this must not run')")
    hf_tokenizer.write_tokenizer(tokenizer(), folder, 24)
    said = command("import", "published")
    assert said.exit_code == 0, said.exception
    assert_same(model, "published")


def test_a_model_of_another_kind_is_refused(home: Path) -> None:
    (home / "bert").mkdir()
    for config, words in (
        ({"model_type": "bert"}, "model_type 'bert'"),
        ({"model_type": "gpt2", "activation_function": "tanh"}, "activation_function 'tanh'"),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
    ):
        (home / "bert" / "config.json").write_text(json.dumps(config))
        assert words in refused("import", "bert")
