"""Train the demo's tokenizer, text encoder and transformer: ``python -m jobs.weights.transformer``.

They train together on the latents of the autoencoder (``python -m jobs.weights.autoencoder`` comes first), with the
loss, the timestep distribution and the caption dropout that fine-tuning uses. The result is a complete Wan pipeline. A
killed run goes on from its last state.
"""

from __future__ import annotations

import argparse
import copy
import json
import time

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from jobs.weights.training import (
    CHANNELS,
    FLOW_SHIFT,
    HELD_OUT,
    OUT,
    STATE,
    clips,
    rate,
    save_state,
    timesteps,
    velocity_error,
)
from pipeline.synthetic import world

TEXT_TOKENS = 32


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 512 tokens: world captions in a few tokens, any other text in bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([s.caption for s in world.corpus(0, 2000, 2)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def make_text_encoder() -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=512, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0, pad_token_id=0
    )
    return UMT5EncoderModel(config)


def make_transformer() -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=64,
        freq_dim=64,
        ffn_dim=384,
        num_layers=4,
        rope_max_seq_len=128,
    )


def text(encoder: UMT5EncoderModel, tokens: torch.Tensor) -> torch.Tensor:
    """Embeddings [B, TEXT_TOKENS, 64] as WanPipeline pads them: zeros after the end of the caption."""
    mask = tokens != 0
    hidden: torch.Tensor = encoder(tokens, attention_mask=mask).last_hidden_state
    return hidden * mask[..., None]


@torch.no_grad()
def judge_transformer(
    model: WanTransformer3DModel, encoder: UMT5EncoderModel, h: torch.Tensor, tokens: torch.Tensor
) -> dict[str, float]:
    """Held-out loss, and that of the mean predictor (a constant velocity)."""
    generator = torch.Generator().manual_seed(HELD_OUT)
    noise, t = torch.randn(h.shape, generator=generator), timesteps(generator, len(h))
    losses = [
        velocity_error(model, h[i], text(encoder, tokens[i]), t[i], noise[i]) for i in torch.arange(len(h)).split(64)
    ]
    u = noise - h
    mean = float(((u - u.mean((0, 2, 3, 4), keepdim=True)) ** 2).mean())
    loss = float(torch.cat(losses).mean())
    return {"loss": loss, "mean_predictor": mean, "share": loss / mean}


@torch.no_grad()
def encode(vae: AutoencoderKLWan, videos: torch.Tensor) -> torch.Tensor:
    """The normalised latents of videos [N, 3, F, H, W] of uint8 levels."""
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    return torch.cat([(vae.encode(b.float() / 127.5 - 1).latent_dist.mode() - mean) / std for b in videos.split(50)])


def train_transformer(steps: int) -> None:
    path = STATE / "transformer.pt"
    tokenizer = make_tokenizer()
    vae = AutoencoderKLWan.from_pretrained(OUT / "vae", use_safetensors=True)
    torch.manual_seed(1)
    model, encoder = make_transformer(), make_text_encoder()
    parameters = [*model.parameters(), *encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01, betas=(0.9, 0.99))
    average, average_encoder, first = copy.deepcopy(model), copy.deepcopy(encoder), 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        for name, module in (
            ("model", model),
            ("encoder", encoder),
            ("average", average),
            ("average_encoder", average_encoder),
        ):
            module.load_state_dict(state[name])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]

    def prepared(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        videos, captions, _ = clips(seed, count)
        padded = tokenizer(captions, padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt")
        return encode(vae, videos), padded.input_ids

    (h, tokens), held_out = prepared(0, 12000), prepared(HELD_OUT, 512)
    empty = tokenizer([""], padding="max_length", max_length=TEXT_TOKENS, return_tensors="pt").input_ids
    start = time.monotonic()
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, 1.5e-3)
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randint(0, len(h), (32,), generator=generator)
        dropped = torch.rand(32, 1, generator=generator) < 0.1
        context = text(encoder, torch.where(dropped, empty, tokens[chosen]))
        t, noise = timesteps(generator, 32), torch.randn((32, *h.shape[1:]), generator=generator)
        loss = velocity_error(model, h[chosen], context, t, noise).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            decay = min(0.998, (step + 1) / (step + 10))
            for ours, theirs in ((average, model), (average_encoder, encoder)):
                for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                    a.lerp_(b, 1 - decay)
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} loss {float(loss.detach()):.4f} {time.monotonic() - start:.0f} s", flush=True)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            modules = {"model": model, "encoder": encoder, "average": average, "average_encoder": average_encoder}
            states: dict[str, object] = {name: module.state_dict() for name, module in modules.items()}
            save_state({**states, "optimizer": optimizer.state_dict(), "step": step + 1}, path)
            scheduler = UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT, num_train_timesteps=1000
            )
            WanPipeline(
                tokenizer=tokenizer, text_encoder=average_encoder, vae=vae, scheduler=scheduler, transformer=average
            ).save_pretrained(OUT)
            print(json.dumps({"step": step + 1, **judge_transformer(average, average_encoder, *held_out)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6000)
    torch.set_num_threads(1)
    train_transformer(parser.parse_args().steps)


if __name__ == "__main__":
    main()
