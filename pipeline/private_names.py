"""Names of other libraries that are private or undocumented, and that this project uses all the same.

Such a name may go with any minor version. So pyproject.toml bounds each of these libraries below the next minor
version, and tests/project/test_private_names.py demands a row for every use and looks for each name and its parameters.
To raise a bound: install the new version, run that test, read the code of each row's file again, and change SEEN.
"""

from __future__ import annotations

from dataclasses import dataclass

SEEN = {
    "diffusers": "0.42.1",
    "fsspec": "2026.9.0",
    "ray": "2.60.0",
    "s3fs": "2026.9.0",
    "torchvision": "0.27.1",
}


@dataclass(frozen=True)
class PrivateName:
    """`name` is an object's dotted path, its library first. `parameters` are those that a call here passes by name or
    place. `keys` are strings that the object reads or writes: an option, or a key of a file."""

    name: str
    files: tuple[str, ...]
    parameters: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()

    @property
    def library(self) -> str:
        return self.name.split(".")[0]


RAFT = "torchvision.models.optical_flow.raft"
FLOW_TOOLS = "torchvision.models.optical_flow._utils"

NAMES = (
    # The address of a Ray that runs on this machine, as ray.init finds it.
    PrivateName(
        "ray._private.services.canonicalize_bootstrap_address_or_die", ("pipeline/cluster/connection.py",), ("addr",)
    ),
    # Whether a cluster's head answers. The message is Ray's own protocol.
    PrivateName("ray.core.generated.gcs_service_pb2.CheckAliveRequest", ("pipeline/cluster/connection.py",)),
    PrivateName("ray.core.generated.gcs_service_pb2.CheckAliveReply", ("pipeline/cluster/connection.py",)),
    # Where a Ray that starts here keeps its sockets and logs.
    PrivateName("ray.init", ("pipeline/cluster/local_ray.py",), keys=("_temp_dir",)),
    # The autoscaler's largest number of nodes.
    PrivateName("ray._private.state.state", ("pipeline/cluster/resources.py",)),
    PrivateName("ray._private.state.state.get_cluster_config", ("pipeline/cluster/resources.py",)),
    # A Ray that starts here listens on 127.0.0.1 alone.
    PrivateName("ray._private.ray_constants.ENABLE_RAY_CLUSTER", ("pipeline/cluster/local_ray.py",)),
    # RAFT over a whole clip, from torchvision's own pieces.
    PrivateName(f"{FLOW_TOOLS}.make_coords_grid", ("pipeline/motion/raft.py",), ("batch_size", "h", "w", "device")),
    PrivateName(f"{FLOW_TOOLS}.upsample_flow", ("pipeline/motion/raft.py",), ("flow", "up_mask")),
    PrivateName(f"{RAFT}.CorrBlock.build_pyramid", ("pipeline/motion/raft.py",), ("fmap1", "fmap2")),
    PrivateName(f"{RAFT}.CorrBlock.index_pyramid", ("pipeline/motion/raft.py",), ("centroids_coords",)),
    # Every request to S3 passes here, and what a store that does not answer is taken for.
    PrivateName("s3fs.S3FileSystem._call_s3", ("pipeline/storage/s3.py",), ("method",)),
    PrivateName("s3fs.S3FileSystem._info", ("pipeline/storage/s3.py",), ("path",)),
    PrivateName("s3fs.S3FileSystem._isdir", ("pipeline/storage/s3.py",), ("path",)),
    PrivateName("s3fs.S3FileSystem._exists", ("pipeline/storage/s3.py",), ("path",)),
    PrivateName("fsspec.asyn.AsyncFileSystem._isfile", ("pipeline/storage/s3.py",), ("path",)),
    PrivateName(
        "fsspec.AbstractFileSystem._strip_protocol", ("pipeline/storage/s3.py", "pipeline/storage/stores.py"), ("path",)
    ),
    # The class that a folder's model is of, in its config.json and model_index.json.
    PrivateName(
        "diffusers.ConfigMixin.to_json_string",
        (
            "pipeline/models/diffusers_family.py",
            "pipeline/models/registry.py",
            "pipeline/models/schedule.py",
            "pipeline/training/loop.py",
        ),
        keys=("_class_name",),
    ),
    # What of a transformer is loaded in float32 whatever the dtype, to count its bytes.
    PrivateName("diffusers.ModelMixin._keep_in_fp32_modules", ("pipeline/models/fp8.py",)),
    # The positions of CogVideoX's tokens, as its pipeline makes them.
    PrivateName(
        "diffusers.CogVideoXPipeline._prepare_rotary_positional_embeddings",
        ("pipeline/models/adapters/cogvideox.py",),
        ("height", "width", "num_frames", "device"),
    ),
    # The adapters' settings in the file of their weights.
    PrivateName(
        "diffusers.training_utils._collate_lora_metadata", ("pipeline/training/loop.py",), ("modules_to_save",)
    ),
    # Which weights of the large model stay in float32.
    PrivateName("diffusers.WanTransformer3DModel._keep_in_fp32_modules", ("jobs/benchmarks/measured_models.py",)),
)
