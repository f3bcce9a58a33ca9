"""All that goes into a package, as digests: what is built again, and what is kept."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

import mobilevit_coreml
from mobilevit_coreml.checkpoints.hub import HUB_ID, PUBLISHED, HubUnreachableError, snapshot
from mobilevit_coreml.conversion import split
from mobilevit_coreml.images import images_in
from mobilevit_coreml.package.files import digest_of
from mobilevit_coreml.release.recipe import Recipe, RecipeError

AUTO, PRETRAINED, UNTRAINED = "auto", "pretrained", "untrained"
WEIGHTS, IMAGES = "weights", "images"
ELSEWHERE = ("cli", "release", "report", "validation")  # parts that no package's bytes depend on


@dataclasses.dataclass(frozen=True)
class Weights:
    """A recipe's weights: what `convert` is to be given, their identity, and why it is these where that is news."""

    name: str
    digest: str
    notice: str = ""


def weights_of(recipe: Recipe, directory: Path, pretrained: bool, find: Callable[[str], Path] = snapshot) -> Weights:
    """Where a recipe's weights are now; paths are relative to the recipe's directory, `find` asks cache and hub.

    Raises CheckpointError where they are nowhere, unless untrained ones will do.
    """
    asked = PRETRAINED if pretrained and recipe.weights == AUTO else recipe.weights
    if asked == UNTRAINED:
        return Weights(UNTRAINED, UNTRAINED)
    path = directory / Path(asked).expanduser()
    if asked in (AUTO, PRETRAINED):
        hub_id = PUBLISHED[recipe.task][recipe.variant]
        try:
            return Weights(hub_id, digest_of(find(hub_id)))
        except HubUnreachableError as error:
            if asked == PRETRAINED:
                raise
            return Weights(UNTRAINED, UNTRAINED, str(error))
    if path.is_dir():
        return Weights(str(path), digest_of(path))
    if path.is_file():
        with path.open("rb") as file:
            return Weights(str(path), hashlib.file_digest(file, "sha256").hexdigest())
    if HUB_ID.fullmatch(asked):
        return Weights(asked, digest_of(find(asked)))
    raise RecipeError(
        f"{directory / recipe.name}.toml: weights: expected auto, pretrained, untrained, a path or a hub id, "
        f"got {asked!r}, where there is nothing; check the path"
    )


def inputs_of(recipe: Recipe, weights: Weights, images: Path | None) -> dict[str, str]:
    """Digests of all that goes into a package; of a budget's without photographs all but these."""
    content = dataclasses.asdict(recipe)
    del content["notes"]
    found = {
        "recipe": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
        WEIGHTS: weights.digest,
        "code": code_digest(),
        "mobilevit_coreml": mobilevit_coreml.__version__,
        "torch": metadata.version("torch"),
        "coremltools": metadata.version("coremltools"),
    }
    if recipe.budget is not None and images is not None:
        found[IMAGES] = images_digest(images)
    return found


def code_digest(root: Path = Path(mobilevit_coreml.__file__).parent) -> str:
    """sha256 over the library's source files and data."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if path.suffix in (".py", ".json") and parts[0] not in ELSEWHERE:
            content = path.read_bytes()
            digest.update(f"{'/'.join(parts)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def images_digest(directory: Path) -> str:
    """sha256 over the photographs that a budget is chosen and tested with."""
    digest = hashlib.sha256()
    for paths in split(images_in(directory)):
        for path in paths:
            content = path.read_bytes()
            digest.update(f"{len(content)}\0".encode() + content)
    return digest.hexdigest()


def agree(inputs: Mapping[str, str], built: Mapping[str, str]) -> bool:
    """Whether a package was built of the same, as far as there is something to compare with."""
    return all(built.get(name) == digest for name, digest in inputs.items())
