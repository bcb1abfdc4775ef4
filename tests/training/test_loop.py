"""The fine-tuning loop on a tiny Wan pipeline with random weights."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from pipeline.config import Finetune, VideoModelConfig
from pipeline.models import VideoModel, open_model, trained_weights
from pipeline.models.loss import loss_map, motion_weights
from pipeline.training import checkpoints
from pipeline.training import loop as ft
from pipeline.training import training_set as ts

CPU = torch.device("cpu")
CAPTIONS = ("a ball rolls", "a leaf falls", "a wheel spins", "a spring bounces")


def write_pipeline(folder: Path) -> None:
    """A complete Wan pipeline of a few thousand parameters, with random weights."""
    torch.manual_seed(0)
    words = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", *sorted({w for c in CAPTIONS for w in c.split()})])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    WanPipeline(
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        ),
        text_encoder=UMT5EncoderModel(
            UMT5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0)
        ),
        vae=AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1],
            num_res_blocks=1,
            temperal_downsample=[True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
            scale_factor_temporal=2,
            scale_factor_spatial=2,
        ),
        transformer=WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=16,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=32,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    ).save_pretrained(folder)


def rows(count: int = 4) -> list[dict[str, object]]:
    same = {"version": "1", "weight": 1.0}
    return [{"clip_id": f"clips/{i}.mp4#0", "caption": CAPTIONS[i % 4], **same} for i in range(count)]


def frames_of(row: ts.Row) -> npt.NDArray[np.uint8]:
    """A video of a clip's own, 5 frames of 8x8."""
    number = int(str(row["clip_id"]).split("/")[1].split(".")[0])
    return np.random.default_rng(number).integers(0, 256, (5, 8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("wan")
    write_pipeline(folder)
    return str(folder)


@pytest.fixture(scope="module")
def cache(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("latents"))
    assert ts.encode_set(opened(checkpoint), rows(), frames_of, folder, 8.0) == 4
    return folder


def opened(checkpoint: str, dtype: str = "float32") -> VideoModel:
    return open_model(VideoModelConfig.model_validate({"id": checkpoint, "dtype": dtype, "text_tokens": 8}), CPU)


def settings(**changes: object) -> Finetune:
    return Finetune.model_validate({"steps": 6, "batch": 2, "learning_rate": 1e-3, **changes})


def trained(checkpoint: str, cache: str, config: Finetune) -> tuple[ft.Training, list[float], VideoModel]:
    model = opened(checkpoint)
    training = ft.begin(model, config, seed=3)
    lines = list(ft.train(training, ts.ClipSet(model, rows(), ts.kept_in(cache)), config, seed=3))
    return training, [line.loss for line in lines], model


def velocity(transformer: torch.nn.Module, text_width: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    noisy, text = torch.randn(1, 4, 3, 4, 4, generator=generator), torch.randn(1, 8, text_width, generator=generator)
    with torch.no_grad():
        predicted: torch.Tensor = transformer.eval()(noisy, torch.tensor([500.0]), text, return_dict=False)[0]
    return predicted


# --- the training set ------------------------------------------------------------------------------------------------


def test_clips_are_encoded_once_and_a_changed_one_again(checkpoint: str, tmp_path: Path) -> None:
    model, seen = opened(checkpoint), []

    def counting(row: ts.Row) -> npt.NDArray[np.uint8]:
        seen.append(row["clip_id"])
        return frames_of(row)

    cache = str(tmp_path)
    assert ts.encode_set(model, rows(3), counting, cache, 8.0) == 3
    assert ts.encode_set(model, rows(4), counting, cache, 8.0) == 1
    assert len(seen) == len(set(seen)) == 4
    assert ts.encode_set(model, [{**rows(1)[0], "version": "2"}], counting, cache, 8.0) == 1
    assert ts.encode_set(model, [{**rows(1)[0], "caption": "another"}], counting, cache, 8.0) == 1


def test_a_batch_holds_what_the_model_encodes(checkpoint: str, cache: str) -> None:
    model, row = opened(checkpoint), rows()[2]
    draw = ts.draw(0, 0, 0)
    batch = ts.ClipSet(model, [row], ts.kept_in(cache)).batch([draw], caption_dropout=0.0)
    assert torch.equal(batch.latent[0], model.encode(frames_of(row), 8.0)["latent"])
    assert torch.equal(batch.conditioning["text"][0], model.text(str(row["caption"]))["text"])
    assert torch.equal(batch.timestep, model.schedule.times(torch.tensor([draw.time], dtype=torch.float32)))
    dropped = ts.ClipSet(model, [row], ts.kept_in(cache)).batch([ts.draw(0, 0, 0)], caption_dropout=1.0)
    assert torch.equal(dropped.conditioning["text"][0], model.text("")["text"]), (
        "a dropped caption must become the empty one"
    )
    assert torch.equal(dropped.noise, batch.noise)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_batch_in_pinned_memory_reaches_a_gpu_as_it_is(checkpoint: str, cache: str) -> None:
    clips = ts.ClipSet(opened(checkpoint), rows(), ts.kept_in(cache))
    batch = clips.batch([ts.draw(3, 0, place) for place in range(2)], caption_dropout=0.0)
    there = batch.pinned().to(torch.device("cuda"))
    for name in ("latent", "timestep", "noise"):
        assert torch.equal(getattr(there, name).cpu(), getattr(batch, name)), name
    assert all(torch.equal(there.conditioning[name].cpu(), tensor) for name, tensor in batch.conditioning.items())


def test_captions_of_a_clip_are_drawn_among(checkpoint: str, tmp_path: Path) -> None:
    model, row = opened(checkpoint), {**rows()[2], "captions": CAPTIONS[:3]}
    assert ts.encode_set(model, [row, rows()[2]], frames_of, str(tmp_path), 8.0) == 2, (
        "other captions, another encoding"
    )
    clips, seen = ts.ClipSet(model, [row], ts.kept_in(str(tmp_path))), []
    for step in range(40):
        batch = clips.batch([ts.draw(0, step, 0)], caption_dropout=0.0)
        drawn = batch.conditioning["text"][0]
        matches = [i for i, caption in enumerate(CAPTIONS[:3]) if torch.equal(drawn, model.text(caption)["text"])]
        assert len(matches) == 1, "the text is of none of the clip's captions"
        seen += matches
    assert set(seen) == {0, 1, 2}, "some captions are never drawn"
    again = clips.batch([ts.draw(0, 7, 0)], 0.0).conditioning["text"][0]
    assert torch.equal(again, model.text(CAPTIONS[seen[7]])["text"]), "a draw changes from one call to the next"


def test_a_draw_belongs_to_seed_step_and_position() -> None:
    keys = [(s, t, p) for s in (0, 1) for t in (0, 1, 10) for p in (0, 1, 10)]
    noises = [ts.draw(*k).noise((2, 3)) for k in keys]
    assert len({tuple(n.flatten().tolist()) for n in noises}) == len(keys), "two places share their noise"
    assert torch.equal(noises[4], ts.draw(*keys[4]).noise((2, 3)))


def test_draws_follow_the_weights_and_are_uniform_in_time_and_dropout() -> None:
    weighted = [{"clip_id": c, "weight": w} for c, w in (("a", 0.2), ("b", 0.0), ("c", 0.6), ("d", 0.2), ("e", 0.0))]
    draws = [ts.draw(0, step, p) for step in range(1000) for p in range(4)]
    counts = Counter(ts.pick(ts.cumulated(weighted), [d.clip for d in draws]))
    assert counts[1] == counts[4] == 0, "a clip of weight 0 was drawn"
    assert [counts[i] / 4000 for i in (0, 2, 3)] == pytest.approx([0.2, 0.6, 0.2], abs=0.03)
    assert sum(d.dropped < 0.1 for d in draws) / 4000 == pytest.approx(0.1, abs=0.02)
    assert np.histogram([d.time for d in draws], 4, (0, 1))[0] / 4000 == pytest.approx([0.25] * 4, abs=0.03)
    assert ts.pick(ts.cumulated(weighted), [0.0, 0.19, 0.21, 0.99, 1 - 1e-16]) == [0, 0, 2, 3, 3]


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -0.5], [1.0, float("nan")]])
def test_weights_that_are_none_raise(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        ts.cumulated([{"weight": w} for w in weights])


def test_only_what_is_drawn_needs_encoding() -> None:
    config, many = settings(steps=5, batch=2, accumulate=3, workers=2), rows(1000)
    drawn_rows = ts.drawn(many, config, seed=0)
    assert 1 < len(drawn_rows) <= 60
    assert set(drawn_rows) == {
        ts.pick(ts.cumulated(many), [ts.draw(0, s, p).clip])[0] for s in range(5) for p in range(12)
    }


# --- the loop --------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_attribution(checkpoint: str, cache: str) -> None:
    model, config = opened(checkpoint), settings(steps=1, batch=4)
    clips = ts.ClipSet(model, rows(), ts.kept_in(cache))
    b = clips.batch([ts.draw(3, 0, p) for p in range(4)], config.caption_dropout)
    expected = loss_map(model, b.latent, b.conditioning, b.timestep, b.noise).mean().item()
    training = ft.begin(model, config, seed=3)
    (line,) = ft.train(training, clips, config, seed=3)
    assert line.loss == pytest.approx(expected, rel=1e-6)
    assert line.step == 1
    assert set(json.loads(line.json())) == {"step", "loss", "seconds", "waited"}


def test_a_motion_weight_counts_what_changes_more(checkpoint: str, cache: str) -> None:
    model, config = opened(checkpoint), settings(steps=1, batch=4, motion_weight=3.0)
    clips = ts.ClipSet(model, rows(), ts.kept_in(cache))
    b = clips.batch([ts.draw(3, 0, p) for p in range(4)], config.caption_dropout)
    errors = loss_map(model, b.latent, b.conditioning, b.timestep, b.noise)
    expected = (errors * motion_weights(b.latent, 3.0)).mean().item()
    (line,) = ft.train(ft.begin(model, config, seed=3), clips, config, seed=3)
    assert line.loss == pytest.approx(expected, rel=1e-6)
    assert line.loss != pytest.approx(errors.mean().item(), rel=1e-3)


@pytest.mark.parametrize("rank", [None, 4])
def test_killed_and_resumed_equals_undisturbed(checkpoint: str, cache: str, tmp_path: Path, rank: int | None) -> None:
    config = settings(lora_rank=rank, weight_decay=0.1, schedule="linear")
    whole, losses, _ = trained(checkpoint, cache, config)
    model = opened(checkpoint)
    first = ft.begin(model, config, seed=3)
    for line in ft.train(first, ts.ClipSet(model, rows(), ts.kept_in(cache)), config, seed=3):
        if line.step == 4:
            checkpoints.write(checkpoints.staged(first), tmp_path)
        if line.step == 5:
            break  # killed, one step after the state
    model = opened(checkpoint)
    second = ft.begin(model, config, seed=3)
    checkpoints.restore(second, str(tmp_path))
    again = list(ft.train(second, ts.ClipSet(model, rows(), ts.kept_in(cache)), config, seed=3))
    assert [(line.step, line.loss) for line in again] == [(5, losses[4]), (6, losses[5])]
    for name, parameter in whole.parameters.items():
        assert torch.equal(parameter, second.parameters[name]), f"{name} differs after a resume"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_goes_on_from_a_checkpoint(checkpoint: str, cache: str, tmp_path: Path) -> None:
    config = settings(steps=3)
    model = open_model(
        VideoModelConfig.model_validate({"id": checkpoint, "dtype": "float32", "text_tokens": 8}), torch.device("cuda")
    )
    clips = ts.ClipSet(model, rows(), ts.kept_in(cache))
    first = ft.begin(model, config, seed=3)
    for line in ft.train(first, clips, config, seed=3):
        if line.step == 2:
            checkpoints.write(checkpoints.staged(first), tmp_path)
    last = line.loss
    second = ft.begin(model, config, seed=3)
    checkpoints.restore(second, str(tmp_path))
    assert [line.loss for line in ft.train(second, clips, config, seed=3)] == [pytest.approx(last, rel=1e-4)]


def test_shares_of_a_batch_add_up_to_it(checkpoint: str, cache: str) -> None:
    whole, losses, _ = trained(checkpoint, cache, settings(steps=2, batch=4))
    parts, accumulated, _ = trained(checkpoint, cache, settings(steps=2, batch=1, accumulate=4))
    assert accumulated == pytest.approx(losses, rel=1e-5)
    difference = max((p - parts.parameters[n]).abs().max().item() for n, p in whole.parameters.items())
    assert difference < 1e-5
    clips = ts.ClipSet(opened(checkpoint), rows(), ts.kept_in(cache))
    with pytest.raises(ValueError, match="2 workers"):
        next(ft.train(whole, clips, settings(steps=9, batch=1), 0, 0, 2))


def test_workers_share_a_batch_as_evenly_as_can_be() -> None:
    for clips in range(1, 12):
        for workers in range(1, clips + 1):
            shares = [ft.positions(clips, rank, workers) for rank in range(workers)]
            assert [place for share in shares for place in share] == list(range(clips)), "a place is missing or doubled"
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_linear_schedule_falls_to_nothing(checkpoint: str, cache: str) -> None:
    constant, linear = settings(steps=4), settings(steps=4, schedule="linear")
    assert [ft.rate(constant, step) for step in range(4)] == [1e-3] * 4
    assert [ft.rate(linear, step) for step in range(4)] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])
    training, _, _ = trained(checkpoint, cache, linear)
    assert training.optimizer.param_groups[0]["lr"] == pytest.approx(2.5e-4), "the loop takes the schedule's rate"


def test_the_loss_falls_on_a_set_that_can_be_learnt_by_heart(checkpoint: str, cache: str) -> None:
    _, losses, _ = trained(checkpoint, cache, settings(steps=120, batch=4, learning_rate=5e-3))
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:10]), losses


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
def test_bfloat16_models_train_float32_weights(checkpoint: str, cache: str) -> None:
    model, config = opened(checkpoint, "bfloat16"), settings(steps=1, learning_rate=1e-6)
    training = ft.begin(model, config, seed=0)
    before = {name: p.detach().clone() for name, p in training.parameters.items()}
    (line,) = ft.train(training, ts.ClipSet(model, rows(), ts.kept_in(cache)), config, seed=0)
    assert {p.dtype for p in training.parameters.values()} == {torch.float32}
    assert sum(not torch.equal(before[n], p) for n, p in training.parameters.items()) > 0.9 * len(before)
    _, exact, _ = trained(checkpoint, cache, config)
    assert exact[0] == pytest.approx(line.loss, rel=0.05)


def test_a_loss_that_is_not_finite_raises(checkpoint: str, cache: str) -> None:
    with pytest.raises(FloatingPointError, match="learning_rate"):
        trained(checkpoint, cache, settings(steps=50, learning_rate=1e30))


def test_a_gradient_that_is_not_finite_raises_before_it_changes_a_weight(checkpoint: str, cache: str) -> None:
    """Its loss may be finite; every later checkpoint, and the result, would be NaN."""
    model, config = opened(checkpoint), settings(steps=3)
    training = ft.begin(model, config, seed=0)
    before = {name: p.detach().clone() for name, p in training.parameters.items()}
    next(iter(training.parameters.values())).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match=r"gradient of step 1 .*learning_rate"):
        list(ft.train(training, ts.ClipSet(model, rows(), ts.kept_in(cache)), config, seed=0))
    assert all(torch.equal(before[name], p) for name, p in training.parameters.items())


def test_the_next_clips_are_read_while_a_step_is_computed(checkpoint: str, cache: str) -> None:
    load_clip, second = ts.kept_in(cache), threading.Event()
    read = list[str]()

    def encoded(row: ts.Row | None) -> ts.EncodedClip:
        if row is not None:
            read.append(row["clip_id"])
            if len(read) == 3:
                second.set()
        return load_clip(row)

    model, config = opened(checkpoint), settings(steps=2)
    training = ft.begin(model, config, seed=3)
    lines = ft.train(training, ts.ClipSet(model, rows(), encoded), config, seed=3)
    first = next(lines)
    assert second.wait(60), "a clip of the second step is asked for before that step"
    (last,) = lines
    _, undisturbed, _ = trained(checkpoint, cache, config)
    assert [first.loss, last.loss] == undisturbed
    assert len(read) == 4, "nothing is read beyond the last step"
    assert all(0 <= line.waited <= line.seconds for line in (first, last))


def test_clips_that_cannot_be_read_end_the_step_that_needs_them(checkpoint: str, cache: str) -> None:
    load_clip, read = ts.kept_in(cache), list[str]()

    def encoded(row: ts.Row | None) -> ts.EncodedClip:
        if row is not None:
            read.append(row["clip_id"])
            if len(read) > 4:
                raise OSError("no such file")
        return load_clip(row)

    model, config = opened(checkpoint), settings(steps=6)
    training = ft.begin(model, config, seed=3)
    lines = ft.train(training, ts.ClipSet(model, rows(), encoded), config, seed=3)
    assert [next(lines).step for _ in range(2)] == [1, 2]
    with pytest.raises(OSError, match="no such file"):
        next(lines)


# --- what is written -------------------------------------------------------------------------------------------------


def test_full_weights_load_with_from_pretrained(checkpoint: str, cache: str, tmp_path: Path) -> None:
    training, _, model = trained(checkpoint, cache, settings())
    ft.save_weights(training, str(tmp_path / "arm"))
    loaded = WanTransformer3DModel.from_pretrained(tmp_path / "arm" / "transformer")
    assert torch.equal(velocity(loaded), velocity(model.trained))
    fresh = opened(checkpoint)
    assert not torch.equal(velocity(fresh.trained), velocity(model.trained))
    trained_weights.load_weights(fresh, str(tmp_path / "arm"))
    assert torch.equal(velocity(fresh.trained), velocity(model.trained))


def test_lora_weights_load_with_load_lora_weights(checkpoint: str, cache: str, tmp_path: Path) -> None:
    training, _, model = trained(checkpoint, cache, settings(lora_rank=4))
    base = velocity(opened(checkpoint).trained)
    ft.save_weights(training, str(tmp_path / "arm"))
    assert [p.name for p in (tmp_path / "arm").iterdir()] == [trained_weights.LORA]
    pipe = WanPipeline.from_pretrained(checkpoint)
    pipe.load_lora_weights(str(tmp_path / "arm"))
    torch.testing.assert_close(velocity(pipe.transformer), velocity(model.trained))
    assert not torch.allclose(velocity(pipe.transformer), base)
    fresh = opened(checkpoint)
    trained_weights.load_weights(fresh, str(tmp_path / "arm"))
    torch.testing.assert_close(velocity(fresh.trained), velocity(model.trained))


def test_lora_starts_as_the_base_and_leaves_it_alone(checkpoint: str, cache: str) -> None:
    model = opened(checkpoint)
    base, before = velocity(model.trained), {n: p.detach().clone() for n, p in model.trained.named_parameters()}
    training = ft.begin(model, settings(lora_rank=4), seed=0)
    torch.testing.assert_close(velocity(model.trained), base)
    assert len(training.parameters) == 2 * 2 * 2 * 4, "A and B of q, k, v and out in both attentions of both blocks"
    list(ft.train(training, ts.ClipSet(model, rows(), ts.kept_in(cache)), settings(lora_rank=4), seed=0))
    now = {n.replace(".base_layer", ""): p for n, p in model.trained.named_parameters()}
    assert all(torch.equal(now[n], p) for n, p in before.items())
    again = ft.begin(opened(checkpoint), settings(lora_rank=4), seed=0)
    other = ft.begin(opened(checkpoint), settings(lora_rank=4), seed=1)
    name = next(n for n in again.parameters if "lora_A" in n)
    assert not torch.equal(again.parameters[name], other.parameters[name])


@pytest.mark.parametrize("rank", [None, 4])
def test_an_object_store_does_as_well_as_a_folder(checkpoint: str, rank: int | None) -> None:
    place, config = f"memory://arm-{rank}", settings(steps=1, lora_rank=rank)
    model = opened(checkpoint)
    assert ts.encode_set(model, rows(), frames_of, f"{place}/latents", 8.0) == 4
    assert ts.encode_set(model, rows(), frames_of, f"{place}/latents", 8.0) == 0
    training = ft.begin(model, config, seed=0)
    list(ft.train(training, ts.ClipSet(model, rows(), ts.kept_in(f"{place}/latents")), config, seed=0))
    ft.save_weights(training, f"{place}/weights")
    fresh = opened(checkpoint)
    trained_weights.load_weights(fresh, f"{place}/weights")
    torch.testing.assert_close(velocity(fresh.trained), velocity(model.trained))


def test_weights_that_are_not_there_raise(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither transformer/ nor"):
        trained_weights.load_weights(opened(checkpoint), str(tmp_path))


def test_state_is_plain_safetensors(checkpoint: str, cache: str, tmp_path: Path) -> None:
    training, _, _ = trained(checkpoint, cache, settings(steps=1))
    checkpoints.write(checkpoints.staged(training), tmp_path)
    kinds = {key.split(".")[0] for key in safetensors.torch.load_file(tmp_path / checkpoints.file_name(0, 1))}
    assert kinds == {"parameter", "optimizer", "step"}


def test_the_loop_needs_no_optical_flow() -> None:
    """Each process of a fine-tuning imports it; torchvision alone takes more than a second of processor."""
    code = "import sys, pipeline.training.loop; print([m for m in ('torchvision', 'scipy') if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.stdout == "[]\n", ended.stdout + ended.stderr
