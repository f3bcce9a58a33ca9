"""Weights on the Hugging Face hub, downloaded to the local cache."""

import re
from collections.abc import Mapping
from pathlib import Path

from mobilevit_coreml.config import Task
from mobilevit_coreml.errors import CheckpointError, os_error_text

# Apple's weights by task and variant, trained on ImageNet-1k or PASCAL VOC (segmentation)
_CLASSIFIERS = {"xxs": "apple/mobilevit-xx-small", "xs": "apple/mobilevit-x-small", "s": "apple/mobilevit-small"}
PUBLISHED: Mapping[str, Mapping[str, str]] = {
    Task.CLASSIFICATION: _CLASSIFIERS,
    Task.SEGMENTATION: {
        "xxs": "apple/deeplabv3-mobilevit-xx-small",
        "xs": "apple/deeplabv3-mobilevit-x-small",
        "s": "apple/deeplabv3-mobilevit-small",
    },
    Task.FEATURES: _CLASSIFIERS,  # the backbone is used
}
# in order of preference; an index names the parts of large models
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
CONFIG_FILES = ("config.json", "preprocessor_config.json", "processor_config.json")
HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
HUB_TIMEOUT = 10  # seconds


class HubUnreachableError(CheckpointError):
    """The weights are not in the local cache, and the hub cannot be reached."""


def snapshot(hub_id: str) -> Path:
    """Directory with weights and configuration of `owner/name` or `owner/name@revision`; its name is the commit.

    The local cache is used first. Raises HubUnreachableError if the hub cannot be reached,
    CheckpointError if it has no such weights.
    """
    match = HUB_ID.fullmatch(hub_id)
    if match is None:
        raise CheckpointError(f"weights {hub_id}: expected owner/name or owner/name@revision; check the hub id")
    return _cached(match["repo"], match["revision"]) or _download(match["repo"], match["revision"])


def _cached(repo: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for name in WEIGHT_FILES:
        path = try_to_load_from_cache(repo, name, revision=revision)
        if isinstance(path, str):
            return Path(path).parent
    return None


def _download(repo: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    from mobilevit_coreml.checkpoints.files import SHARD_INDEX, read_json_object

    try:
        # before hf_hub_download, which retries for half a minute without a network
        info = HfApi().model_info(repo, revision=revision, timeout=HUB_TIMEOUT)
        files = {entry.rfilename for entry in info.siblings or ()}
        weights = next((name for name in WEIGHT_FILES if name in files), None)
        if weights is None:
            raise CheckpointError(
                f"weights {repo}: expected {' or '.join(WEIGHT_FILES)} on the hub, got none; choose another"
            )
        for name in CONFIG_FILES:
            if name in files:
                hf_hub_download(repo, name, revision=info.sha)
        path = Path(hf_hub_download(repo, weights, revision=info.sha))
        if weights.endswith(SHARD_INDEX):
            for part in sorted(set(read_json_object(path).get("weight_map", {}).values())):
                hf_hub_download(repo, str(part), revision=info.sha)
        return path.parent
    except CheckpointError:
        raise
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        what = "revision" if isinstance(error, RevisionNotFoundError) else "repository"
        raise CheckpointError(
            f"weights {repo}{f'@{revision}' if revision else ''}: expected a {what} on the Hugging Face hub, "
            "got none that is public or yours; check the name, or log in with `hf auth login`"
        ) from None
    except Exception as error:  # huggingface_hub passes on errors of its HTTP client
        raise HubUnreachableError(
            f"weights {repo}: expected in the local cache or on the Hugging Face hub, got no connection "
            f"({os_error_text(error)}); connect once, or give a file with --weights"
        ) from None
