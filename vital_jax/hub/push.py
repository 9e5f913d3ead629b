"""Sends an exported folder to a Hugging Face hub: shown first, sent only when told, into a private repository."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, ModelCard

from vital_jax.hub.folders import FACTS
from vital_jax.hub.writing import amount

NOTE = (
    "Before others see it: the base's licence, the licences of the training data and the terms of the encoder whose region features were "
    "regressed hold for what is derived from them (MedSigLIP: the Health AI Developer Foundations terms). Read the folder's README.md and "
    "complete what it says was not at hand. Research only, not a medical device."
)


@dataclass(frozen=True)
class Push:
    """What would be sent where: files with their bytes, and the licence that the card states (may be empty)."""

    folder: Path
    repository: str
    files: dict[str, int]
    licence: str

    def describe(self) -> str:
        """For reading before it is sent."""
        lines = [f"{amount(size):>12}  {name}" for name, size in self.files.items()]
        total = (
            f"{len(self.files)} files, {amount(sum(self.files.values()))}, to the private repository {self.repository}"
        )
        return "\n".join([*lines, total, f"licence stated: {self.licence or 'none'}", NOTE])

    def send(self) -> str:
        """Makes the repository where it is not there, private, and uploads the folder. Returns its address.

        The hub's own client reads the access token from its usual places. Raises: OSError, the client's own words.
        """
        api = HfApi()
        address = api.create_repo(self.repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=self.repository, folder_path=self.folder, allow_patterns=list(self.files))
        return str(address)


def plan(folder: str | Path, repository: str) -> Push:
    """Lists what would be sent. Raises: FileNotFoundError for a folder that no export finished; ValueError for another form of name."""
    folder = Path(folder)
    if not (folder / FACTS).is_file() or folder.name.endswith(".partial"):
        raise FileNotFoundError(f"{folder} is no exported folder (it holds no {FACTS}); export the run first")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise ValueError(f"repository {repository!r}: give it as OWNER/NAME")
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    # What else lies there, a notebook's leavings or keys, is nobody's business.
    files = {
        name: path.stat().st_size
        for name, path in found.items()
        if not any(part.startswith(".") for part in name.split("/"))
    }
    return Push(folder, repository, files, str(ModelCard.load(folder / "README.md").data.license or ""))
