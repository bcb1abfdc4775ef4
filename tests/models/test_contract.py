"""Opening a Wan pipeline, and what its adapter gives."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import models
from pipeline.attribution import fingerprints
from pipeline.config import Run, VideoModelConfig, load
from pipeline.errors import ConfigError
from pipeline.models import Family, VideoModel, folders, open_model
from pipeline.models.adapters.wan import Wan
from pipeline.models.conditioning import batched
from pipeline.synthetic import world
from tests.support import tiny_wan

CPU = torch.device("cpu")


def latent_of(model: VideoModel, clip: np.ndarray) -> torch.Tensor:
    return model.encode(clip, 8.0)["latent"]


def family(folder: Path | str) -> Family:
    return models.family(VideoModelConfig(id=str(folder)))


def hash_of(folder: Path) -> str:
    return models.weights_hash(VideoModelConfig(id=str(folder)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_wan.folder(tmp_path_factory)


@pytest.fixture(scope="module")
def wan(folder: Path) -> Wan:
    return tiny_wan.opened(folder)


@pytest.mark.parametrize(("frames", "height", "width"), [(9, 32, 32), (1, 32, 32), (5, 16, 40)])
def test_frames_become_latents_of_the_strides_shape(wan: Wan, frames: int, height: int, width: int) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), np.uint8)
    latent = latent_of(wan, clip)
    assert latent.shape == (8, (frames - 1) // 2 + 1, height // 4, width // 4), "frames or sides folded otherwise"
    assert latent.dtype == torch.float32
    assert wan.decode(latent).shape == clip.shape, "decode(encode) has another shape than the clip"
    assert wan.decode(latent).dtype == np.uint8


def test_the_configuration_tells_the_grid_before_loading(wan: Wan, folder: Path) -> None:
    of = family(folder)
    assert of.strides == wan.family.strides == (2, 4)
    assert of.sides == (8, 8)
    assert models.grid_of(of, 9, 32, 40).shape == (5, 8, 10)
    assert of.folds(9) == (1, 2, 2, 2, 2)
    with pytest.raises(ConfigError, match="2 n \\+ 1; use 7 or 9"):
        of.folds(8)


def test_encode_normalises_the_posteriors_mode(wan: Wan) -> None:
    clip = world.render(world.scene(0, "x", "real", "spin"), 32, 32)
    video = torch.from_numpy(clip).permute(3, 0, 1, 2)[None] / 127.5 - 1
    assert float(video.min()) >= -1
    with torch.no_grad():
        raw = wan.vae.encode(video).latent_dist.mode()[0]
    for c in range(8):
        expected = (raw[c] - (0.3 * c - 1)) / (0.5 + 0.2 * c)
        assert torch.allclose(latent_of(wan, clip)[c], expected, atol=1e-5), f"channel {c} is not normalised"
    assert torch.equal(latent_of(wan, clip), latent_of(wan, clip)), (
        "the latent is sampled, so a feature depends on chance"
    )


def test_decode_undoes_the_normalisation(wan: Wan) -> None:
    latent = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mean = torch.tensor(wan.vae.config.latents_mean).view(-1, 1, 1, 1)
    std = torch.tensor(wan.vae.config.latents_std).view(-1, 1, 1, 1)
    with torch.no_grad():
        video = wan.vae.decode((latent * std + mean)[None]).sample[0]
    expected = ((video.clamp(-1, 1) + 1) * 127.5).permute(1, 2, 3, 0)
    assert np.abs(wan.decode(latent).astype(float) - expected.numpy()).max() <= 0.51


def test_text_is_padded_with_zeros_after_the_caption(wan: Wan) -> None:
    captions = ["a red ball rolling", "a green star being compressed", ""]
    embeddings = batched([wan.text(caption) for caption in captions])["text"]
    assert embeddings.shape == (3, 32, 64), "captions are not padded to text_tokens"
    for row, caption in zip(embeddings, captions, strict=True):
        used = len(wan.pipeline.tokenizer(caption).input_ids)
        assert row[:used].abs().sum(1).min() > 0, f"{caption!r}: a token of the caption is zero"
        assert not row[used:].any(), f"{caption!r}: what follows the caption is not zero, as Wan was trained"
    assert not torch.allclose(embeddings[0], embeddings[1]), "two captions condition alike"


def test_noised_and_target_are_those_of_flow_matching(wan: Wan) -> None:
    generator = torch.Generator().manual_seed(0)
    latent, noise = (torch.randn(2, 8, 3, 4, 4, generator=generator) for _ in range(2))
    t = torch.tensor([250.0, 1000.0])
    noisy, target = wan.schedule.noised(latent, noise, t), wan.schedule.target(latent, noise, t)
    assert torch.allclose(noisy[0], 0.75 * latent[0] + 0.25 * noise[0])
    assert torch.allclose(noisy[1], noise[1]), "at t = 1000 the latent shines through"
    assert torch.equal(target, noise - latent)
    # Along the target from the noise the clip is reached: z - s u = h.
    assert torch.allclose(noisy[0] - 0.25 * target[0], latent[0], atol=1e-6)


def test_shifted_timesteps_are_those_of_the_scheduler(wan: Wan) -> None:
    uniform = torch.tensor([0.0, 0.25, 0.5, 1.0])
    assert torch.allclose(wan.schedule.times(uniform), torch.tensor([0.0, 500.0, 750.0, 1000.0])), (
        "flow_shift 3 is not used"
    )


def test_the_transformer_sees_timestep_and_caption(wan: Wan) -> None:
    noisy, text = torch.randn(1, 8, 3, 8, 8), batched([wan.text("a red ball rolling")])
    with torch.no_grad():
        plain = wan.predict(noisy, torch.tensor([751.0]), text)
        later = wan.predict(noisy, torch.tensor([251.0]), text)
        other = wan.predict(noisy, torch.tensor([751.0]), batched([wan.text("a green star being compressed")]))
    assert plain.shape == noisy.shape
    assert not torch.allclose(plain, later), "the timestep has no effect"
    assert not torch.allclose(plain, other), "the caption has no effect"


def test_only_the_transformer_can_be_trained(wan: Wan) -> None:
    assert all(p.requires_grad for p in wan.trained.parameters())
    for module in (wan.vae, wan.pipeline.text_encoder):
        assert not any(p.requires_grad for p in module.parameters()), "gradients of frozen parts would be kept"
        assert not module.training
    assert not wan.trained.training


def test_a_model_that_moved_computes_where_it_is(folder: Path) -> None:
    model = tiny_wan.opened(folder)
    model.move(torch.device("meta"))
    assert {p.device.type for p in (*model.trained.parameters(), *model.vae.parameters())} == {"meta"}
    raw = torch.empty(1, 8, 3, 8, 8, device="meta")
    assert model.normalised(raw).device.type == "meta", "the statistics of latents stayed behind"


def test_bfloat16_is_for_the_transformer_and_not_for_the_autoencoder(folder: Path) -> None:
    model = tiny_wan.opened(folder, dtype="bfloat16", gradient_checkpointing=True)
    assert {p.dtype for p in model.vae.parameters()} == {torch.float32}
    assert model.trained.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert model.trained.is_gradient_checkpointing
    prediction = model.predict(torch.randn(1, 8, 3, 8, 8), torch.tensor([751.0]), batched([model.text("a ball")]))
    assert torch.isfinite(prediction).all()


def test_the_autoencoder_in_bfloat16_gives_the_latents_of_float32_to_two_per_cent() -> None:
    """With the demo's trained weights. Convolutions are rounded; mean and deviation are taken off in float32."""
    recipe = load("demo").model
    plain, rounded = (
        open_model(recipe.model_copy(update={"vae_dtype": dtype}), CPU) for dtype in ("float32", "bfloat16")
    )
    assert isinstance(plain, Wan)
    assert isinstance(rounded, Wan)
    assert {p.dtype for p in rounded.vae.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in rounded.trained.parameters()} == {torch.float32}
    for motion in world.MOTIONS[:4]:
        clip = world.render(world.scene(1_000_003, motion, "real", motion), 32, 32)
        expected, latent = latent_of(plain, clip), latent_of(rounded, clip)
        assert latent.dtype == torch.float32
        error = float((latent - expected).norm() / expected.norm())
        assert 0 < error < 0.02, f"{motion}: latents differ by {error:.2%}"
        assert torch.equal(latent_of(rounded, clip), latent)
        video = torch.from_numpy(clip).permute(3, 0, 1, 2)[None] / 127.5 - 1
        with torch.no_grad():
            raw = rounded.vae.encode(video.bfloat16()).latent_dist.mode()[0].double()
        for c, (mean, std) in enumerate(
            zip(rounded.vae.config.latents_mean, rounded.vae.config.latents_std, strict=True)
        ):
            assert torch.allclose(latent[c].double(), (raw[c] - mean) / std, atol=1e-6), "normalised in bfloat16"
        pictures = rounded.decode(latent)
        assert pictures.dtype == np.uint8
        assert np.abs(pictures.astype(int) - plain.decode(expected)).mean() < 2.0


@pytest.mark.parametrize("stage", [fingerprints.features, fingerprints.evaluation])
def test_features_of_two_autoencoder_dtypes_are_not_comparable(stage: Callable[[Run], dict[str, object]]) -> None:
    first, other = (stage(load("demo", {"model.vae_dtype": dtype})) for dtype in ("float32", "bfloat16"))
    assert {key for key in first if first[key] != other[key]} == {"model.vae_dtype"}


def test_the_autoencoder_takes_one_clip_at_a_time(wan: Wan) -> None:
    assert wan.vae.use_slicing
    assert not wan.vae.use_tiling, "tiles' seams would be in every latent"


def test_generation_is_determined_by_the_seed(wan: Wan) -> None:
    def generate(seed: int) -> np.ndarray:
        return wan.generate("a red ball rolling", (5, 32, 32), 8.0, seed, 2, 3.0)

    first = generate(1)
    torch.rand(3)
    assert first.shape == (5, 32, 32, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, generate(1)), "a second call with the same seed gives another video"
    assert not np.array_equal(first, generate(2)), "the seed has no effect"


def test_the_skeleton_has_the_models_parameters_without_their_memory(wan: Wan, folder: Path) -> None:
    skeleton = family(folder).skeleton()
    shapes = [(name, tuple(p.shape)) for name, p in wan.trained.named_parameters()]
    assert [(name, tuple(p.shape)) for name, p in skeleton.named_parameters()] == shapes
    assert all(p.is_meta for p in skeleton.parameters()), "the skeleton takes memory"


def test_the_weights_hash_sees_weights_and_configurations_and_not_the_place(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    first = hash_of(folder)
    assert hash_of(copy) == first, "moving a model makes all features incomparable"
    for part in ("vae/config.json", "transformer/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json"):
        before = (copy / part).read_bytes()
        (copy / part).write_bytes(before + b" " if part.endswith(".json") else before[:-1] + bytes([before[-1] ^ 1]))
        assert hash_of(copy) != first, f"a change of {part} goes unseen"
        (copy / part).write_bytes(before)
    assert hash_of(copy) == first


# --- what is refused -------------------------------------------------------------------------------------------------


def refused(id: str) -> str:
    with pytest.raises(ConfigError) as caught:
        open_model(VideoModelConfig(id=id), CPU)
    assert id in str(caught.value), f"the message does not name the value: {caught.value}"
    return str(caught.value)


@pytest.mark.parametrize("id", ["/no/such/folder", "no-such-folder", "./owner/name", "a/b/c"])
def test_what_is_neither_folder_nor_hub_id_is_refused(id: str) -> None:
    assert "neither a folder nor a hub id" in refused(id)


def test_a_hub_id_that_cannot_be_fetched_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "the hub could not be asked" in refused("no-such-owner/no-such-model")


def test_a_hub_model_is_fetched_by_one_at_a_time_without_its_pickles(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here, most = list[str](), list[int]()

    def snapshot(id: str, allow_patterns: list[str]) -> str:
        assert not any(fnmatch(name, p) for p in allow_patterns for name in ("a.bin", "a.pt", "a.pkl", "a.py"))
        here.append(id)
        time.sleep(0.1)
        most.append(len(here))
        here.remove(id)
        return str(tmp_path / id)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(folders, "snapshot_download", snapshot)
    with ThreadPoolExecutor(4) as pool:
        snapshots = list(pool.map(folders._snapshot.__wrapped__, ["owner/name"] * 4))
    assert snapshots == [tmp_path / "owner/name"] * 4
    assert most == [1] * 4, "several downloads of one model at a time"


def test_a_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    assert "model_index.json" in refused(str(tmp_path))


def test_another_family_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "AllegroPipeline"}))
    assert "AllegroPipeline, which this version does not attribute: its transformer takes no adapters" in refused(
        str(tmp_path)
    )


def changed(folder: Path, place: Path, file: str, **values: object) -> str:
    """A copy of a pipeline's configurations with other values; None takes a key out."""
    for name in ("model_index.json", "vae/config.json", "transformer/config.json"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        configuration = json.loads((folder / name).read_text())
        if name == file:
            configuration = {key: value for key, value in {**configuration, **values}.items() if value is not None}
        (place / name).write_text(json.dumps(configuration))
    return str(place)


INDEX, VAE, TRANSFORMER = "model_index.json", "vae/config.json", "transformer/config.json"


@pytest.mark.parametrize(
    ("file", "values", "says"),
    [
        (INDEX, {"transformer_2": ["diffusers", "WanTransformer3DModel"]}, "boundary_ratio and without transformer_2"),
        (INDEX, {"boundary_ratio": 0.875}, "boundary_ratio and without transformer_2"),
        (INDEX, {"image_encoder": ["transformers", "CLIPVisionModel"]}, "a pipeline with image_encoder"),
        (INDEX, {"text_encoder_2": ["transformers", "T5EncoderModel"]}, "a pipeline with text_encoder_2"),
        (INDEX, {"_class_name": "WanImageToVideoPipeline"}, "without CLIP's tokens (image_dim)"),
        (INDEX, {"_class_name": "WanVACEPipeline"}, "a WanVACEPipeline"),
        (VAE, {"_class_name": "AutoencoderKLLTXVideo"}, "a pipeline whose vae is a AutoencoderKLLTXVideo"),
        (VAE, {"is_residual": True}, "Wan 2.2's residual autoencoder"),
        (TRANSFORMER, {"_class_name": "WanVACETransformer3DModel"}, "WanVACETransformer3DModel"),
        (TRANSFORMER, {"in_channels": 36}, "in_channels=36, out_channels=8"),
        (TRANSFORMER, {"image_dim": 1280}, "image-to-video model (image_dim=1280)"),
        (TRANSFORMER, {"added_kv_proj_dim": 5120}, "image-to-video model (added_kv_proj_dim=5120)"),
    ],
)
def test_other_models_of_wans_class_are_refused_by_name(
    folder: Path, tmp_path: Path, file: str, values: dict[str, object], says: str
) -> None:
    assert says in refused(changed(folder, tmp_path, file, **values))


def test_a_second_transformer_is_not_left_out_of_the_hash(folder: Path, tmp_path: Path) -> None:
    place = changed(folder, tmp_path / "a", INDEX, transformer_2=["diffusers", "WanTransformer3DModel"])
    (tmp_path / "b" / "transformer_2").mkdir(parents=True)
    for other in (Path(place), Path(changed(folder, tmp_path / "b", INDEX))):
        with pytest.raises(ConfigError, match="transformer_2"):
            hash_of(other)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"scale_factor_temporal": None, "scale_factor_spatial": None}, (2, 4)),  # as Wan 2.1's own folders have it
        ({"dim_mult": None, "temperal_downsample": None}, (2, 4)),
        (
            {
                "scale_factor_temporal": None,
                "scale_factor_spatial": None,
                "patch_size": None,
                "dim_mult": [1, 2, 4, 4],
                "temperal_downsample": [False, True, True],
            },
            (4, 8),
        ),
    ],
)
def test_strides_are_read_from_what_the_configuration_says(
    folder: Path, tmp_path: Path, values: dict[str, object], expected: tuple[int, int]
) -> None:
    assert family(changed(folder, tmp_path, VAE, **values)).strides == expected


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"scale_factor_temporal": None, "dim_mult": None}, "scale_factor_temporal is None"),
        ({"scale_factor_spatial": None, "temperal_downsample": None}, "scale_factor_spatial is None"),
        ({"scale_factor_spatial": 8}, "scale_factor_spatial=8 contradicts"),
        ({"scale_factor_temporal": "4", "dim_mult": None}, "scale_factor_temporal is '4'"),
    ],
)
def test_strides_that_nothing_tells_are_refused(
    folder: Path, tmp_path: Path, values: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigError) as error:
        _ = family(changed(folder, tmp_path, VAE, **values)).strides
    assert says in str(error.value)
    assert "vae/config.json" in str(error.value)


def test_files_that_are_no_json_are_refused(folder: Path, tmp_path: Path) -> None:
    place = Path(changed(folder, tmp_path, INDEX))
    (place / TRANSFORMER).write_text("{")
    assert "transformer/config.json" in refused(str(place))
    with pytest.raises(ConfigError, match=r"patch_size is None"):
        _ = family(changed(folder, tmp_path, TRANSFORMER, patch_size=None)).sides
    (place / INDEX).write_bytes(b"\xff\xfe{")
    assert "model_index.json" in refused(str(place))


@pytest.mark.parametrize("missing", ["transformer", "vae", "text_encoder"])
def test_an_incomplete_pipeline_is_refused(folder: Path, tmp_path: Path, missing: str) -> None:
    copy = tmp_path / "incomplete"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / missing)
    assert "complete diffusers pipeline" in refused(str(copy))
