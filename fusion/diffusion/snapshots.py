"""Location of a checkpoint: a local folder, or a hub repository of which the requested files are downloaded."""

from collections.abc import Sequence
from pathlib import Path


def place(folder_or_hub_id: str | Path, files: Sequence[str]) -> Path:
    """The folder itself, or the local copy of a hub repository with those of its files that match one of the patterns.

    What is there already is not brought again, and without a network a copy from before serves. Precisions kept beside
    the plain one (names with `.fp16`) stay where they are. ValueError in one line: no folder and no hub id, no such
    repository, no access, no network.
    """
    source = str(folder_or_hub_id)
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(source, allow_patterns=list(files), ignore_patterns=["*.fp16*", "*.bf16*"]))
    except HFValidationError:
        raise ValueError(f"{source}: no folder here, and no hub id, which would be owner/name") from None
    except LocalEntryNotFoundError:
        raise ValueError(
            f"{source}: no folder here, and the hub cannot be reached; check the name and the network"
        ) from None
    except GatedRepoError:
        raise ValueError(
            f"{source}: its owners want to be asked first; accept their terms on the hub, and log in with `hf "
            "auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise ValueError(
            f"{source}: no folder here, and the hub has no such repository, or not for you; check the name"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"{source}: the hub did not give it ({' '.join(str(error).split())[:200]}); try again"
        ) from None
