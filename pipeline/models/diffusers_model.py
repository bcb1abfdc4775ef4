"""A loaded diffusers pipeline as a `VideoModel`: what its adapters have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from pipeline.config import VideoModelConfig
from pipeline.models.attention import fastest_attention
from pipeline.models.compiling import compile_blocks
from pipeline.models.contract import Conditioning, Expert, Frames
from pipeline.models.diffusers_family import DiffusersFamily
from pipeline.models.schedule import Schedule

LORA = "pytorch_lora_weights.safetensors"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_STREAM = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")  # where text and video attend to each other


def lora_file(part: str) -> str:
    """The file of a transformer's adapters: diffusers' own name, and one of its own for a second transformer."""
    return LORA if part == "transformer" else f"pytorch_lora_weights_{part}.safetensors"


def lora_prefix(names: Iterable[str]) -> str | None:
    """What a file's names of adapters begin with: "transformer" where a pipeline wrote it, nothing where a transformer
    did."""
    return "transformer" if any(name.startswith("transformer.") for name in names) else None


class DiffusersModel(ABC):
    """A pipeline that is loaded; see `VideoModel` for its methods.

    The autoencoder runs in the dtype that it has, float32 as diffusers advises or bfloat16; its latents are normalised
    in float32 either way.
    """

    targets: ClassVar[Sequence[str]] = ATTENTION
    output_type: ClassVar[str] = "np"
    frozen: ClassVar[Sequence[str]] = ("text_encoder",)  # components that are never trained, beside the autoencoder
    idle_arguments: ClassVar[Sequence[str]] = ()  # of the transformer's call, that change no prediction

    def __init__(self, family: DiffusersFamily, pipeline: Any, config: VideoModelConfig, device: torch.device) -> None:
        self.family, self.pipeline = family, pipeline
        self.schedule: Schedule = family.schedule
        self.text_tokens, self.guidance = config.text_tokens, config.guidance
        self.pipeline.set_progress_bar_config(disable=True)
        self.vae = self.pipeline.vae
        self.vae.enable_slicing()
        self.move(device)
        for part in ("vae", *self.frozen):
            component = getattr(self.pipeline, part)
            if component is not None:  # a benchmark of sizes has no text encoder
                component.requires_grad_(False).eval()
        modules = {expert.part: getattr(self.pipeline, expert.part) for expert in family.experts}
        self.trained: nn.Module = modules["transformer"] if len(modules) == 1 else nn.ModuleDict(modules)
        for module in modules.values():
            module.eval()
            if config.gradient_checkpointing:
                module.enable_gradient_checkpointing()
        self.compiled = False
        if config.compile:
            self.compile()

    def compile(self) -> None:
        """Let the blocks be compiled code from now on. Raises ConfigError where they cannot be."""
        for module in self.transformers().values():
            compile_blocks(module, self.blocks(module))
        self.compiled = True

    def move(self, device: torch.device) -> None:
        """Let it compute on a device from now on."""
        self.device = device
        self.place(self.pipeline, device)
        if device.type == "cuda":
            channels_last(self.vae, True)

    def place(self, pipeline: Any, device: torch.device) -> None:
        """Bring the parts to where they compute."""
        pipeline.to(device)

    def keep_on_device(self, parts: Collection[str]) -> None:
        """Nothing to do where there is one transformer."""
        return

    # --- what is trained ----------------------------------------------------------------------------------------------

    def transformers(self) -> dict[str, nn.Module]:
        if isinstance(self.trained, nn.ModuleDict):
            return dict(self.trained.items())
        return {"transformer": self.trained}

    @property
    def checkpointing(self) -> bool:
        return any(bool(module.is_gradient_checkpointing) for module in self.transformers().values())

    @property
    def dtype(self) -> torch.dtype:
        """Of the transformer's large weights."""
        dtype: torch.dtype = next(iter(self.transformers().values())).dtype  # type: ignore[assignment]
        return dtype

    def expert(self, timestep: float) -> Expert:
        for expert in self.family.experts:
            if expert.has(timestep):
                return expert
        return self.family.experts[0]  # t = 1000

    def asked(self, timestep: Tensor) -> nn.Module:
        """The transformer of a batch's times. ValueError where they are of two experts."""
        if len(self.family.experts) == 1:
            return self.trained
        parts = {self.expert(t).part for t in timestep.tolist()}
        if len(parts) > 1:
            raise ValueError(f"the times {timestep.tolist()} belong to two experts, which cannot share a batch")
        return self.transformers()[parts.pop()]

    def blocks(self, transformer: nn.Module) -> Sequence[nn.Module]:
        return blocks_of(transformer)

    # --- clips and captions -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, frames: Frames, fps: float) -> dict[str, Tensor]:
        return {"latent": self.normalised(self.raw_latent(frames))[0]}

    def raw_latent(self, frames: Frames) -> Tensor:
        """The mode of the autoencoder's posterior, [1, C, f, h, w] float32."""
        mode: Tensor = self.vae.encode(self.pixels(frames).to(self.vae.dtype)).latent_dist.mode().float()
        return mode

    def pixels(self, frames: Frames) -> Tensor:
        """Frames [F, H, W, 3] -> [1, 3, F, H, W] in [-1, 1]."""
        video: Tensor = torch.from_numpy(frames).to(self.device).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        return video

    @abstractmethod
    def normalised(self, raw: Tensor) -> Tensor: ...

    @abstractmethod
    def text(self, caption: str) -> dict[str, Tensor]: ...

    def cut(self, caption: str) -> int:
        """By the first tokenizer; templates around a caption are not counted."""
        return max(0, len(self.pipeline.tokenizer(caption).input_ids) - self.text_tokens)

    def blank(self) -> dict[str, Tensor]:
        return self.text("")

    def counted(self, frames: int) -> Tensor | None:
        return None

    # --- the transformer ----------------------------------------------------------------------------------------------

    @abstractmethod
    def arguments(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> dict[str, Any]: ...

    def unpacked(self, output: Tensor, noisy: Tensor) -> Tensor:
        """The transformer's output in the layout [B, C, f, h, w]."""
        return output

    def predict(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        module = self.asked(timestep)
        output = module(**self.arguments(noisy, timestep, conditioning), return_dict=False)[0]
        return self.unpacked(output, noisy)

    # --- what operations/model_checks holds against the pipeline's own call -----------------------------------------

    def noisy_of(self, arguments: Mapping[str, Any]) -> Tensor:
        """The noisy latent [B, C, f, h, w] in the arguments that the pipeline's own call passes. Channels of conditions
        come after those of the latent."""
        hidden: Tensor = arguments["hidden_states"]
        return hidden[:, : self.family.channels]

    def time_of(self, arguments: Mapping[str, Any]) -> float:
        """The time of those arguments, on the scale of 1000."""
        return float(arguments["timestep"].flatten()[-1])

    def packed_output(self, prediction: Tensor) -> Tensor:
        """A prediction [B, C, f, h, w] in the layout of the transformer's output."""
        return prediction

    def check_call(self) -> dict[str, Any]:
        """The pipeline's arguments in checks alone, beside `call`."""
        return {}

    def compared_call(self, arguments: Mapping[str, Any]) -> bool:
        """Whether this call of the pipeline's own loop is one that the adapter makes as well."""
        return True

    def outputs(self, output: Tensor, arguments: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """All that the transformer gives with return_dict=False, where `output` is its prediction."""
        return (output,)

    def latent_of_call(self, result: Tensor, noisy: Tensor) -> Tensor:
        """What the pipeline's own call gives with output_type="latent", as a latent [B, C, f, h, w] like `noisy`."""
        return self.unpacked(result, noisy)

    def read_lora_as_pipeline(self, folder: str) -> None:
        """Load adapters by the pipeline's own loader."""
        self.pipeline.load_lora_weights(folder)

    # --- generation ---------------------------------------------------------------------------------------------------

    def call(self, frames: int, height: int, width: int, fps: float, guidance: float) -> dict[str, Any]:
        """The pipeline's arguments beside caption, steps and seed."""
        return {"num_frames": frames, "height": height, "width": width, "guidance_scale": guidance}

    @torch.no_grad()
    @fastest_attention()
    def generate(
        self,
        caption: str,
        geometry: tuple[int, int, int],
        fps: float,
        seed: int,
        steps: int,
        guidance: float,
        image: Frames | None = None,
    ) -> Frames:
        arguments = self.call(*geometry, fps, guidance)
        if self.family.image:
            if image is None:
                raise ValueError(f"{self.family.name} makes a video from its first frame, and none is given")
            arguments["image"] = picture(image)
        frames: Frames = self.finished(
            self.pipeline(
                prompt=caption,
                num_inference_steps=steps,
                generator=torch.Generator().manual_seed(seed),
                output_type=self.output_type,
                **arguments,
            ).frames[0]
        )
        return frames

    def finished(self, output: Any) -> Frames:
        """What the pipeline gives, as frames: pictures in [0, 1] unless the adapter decodes latents itself."""
        frames: Frames = (np.clip(output, 0, 1) * 255).round().astype(np.uint8)
        return frames

    # --- adapters -----------------------------------------------------------------------------------------------------

    def lora_targets(self) -> list[str]:
        return list(self.targets)

    def write_lora(self, part: str, layers: dict[str, Tensor], metadata: dict[str, Any], folder: str) -> None:
        type(self.pipeline).save_lora_weights(
            folder,
            transformer_lora_layers=layers,
            transformer_lora_adapter_metadata=metadata,
            weight_name=lora_file(part),
        )

    def read_lora(self, part: str, folder: str) -> bool:
        file = Path(folder, lora_file(part))
        if not file.exists():
            return False
        with safe_open(file, "pt") as tensors:
            prefix = lora_prefix(tensors.keys())
        module: Any = self.transformers()[part]
        module.load_lora_adapter(folder, prefix=prefix, weight_name=file.name)
        return True


def blocks_of(transformer: nn.Module) -> list[nn.Module]:
    """The repeated blocks of diffusers' transformers, one list after the other; also of one without weights."""
    return [block for child in transformer.children() if isinstance(child, nn.ModuleList) for block in child]


def picture(frame: Frames) -> Any:
    """A frame [H, W, 3] as the pipelines take images."""
    from PIL import Image

    return Image.fromarray(frame)


def channels_last(module: nn.Module, last: bool) -> None:
    """The layout of 3-D convolutions' weights: channels last takes an H200 an eighth less time, in the same dtype."""
    layout = torch.channels_last_3d if last else torch.contiguous_format
    for convolution in module.modules():
        if isinstance(convolution, nn.Conv3d):
            convolution.weight.data = convolution.weight.data.contiguous(memory_format=layout)
