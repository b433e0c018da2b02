"""Files of network weights: from an installed package, or downloaded to the cache."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from cmrepro.files import cache_folder, download, require_checksum
from cmrepro.settings import Extractor as ExtractorSettings


def weights_file(settings: ExtractorSettings) -> Path:
    """The file with an extractor's weights, after its checksum.

    A download is kept as `cache_folder()/weights/FILE`; a file put there by hand is used. So is
    one elsewhere, where the [weights.NAME] of a protocol file gives an absolute path as `file`.

    Args:
        settings: Of the extractor.

    Raises:
        FileNotFoundError: If the package or its file is not installed.
        ValueError: If the file has another checksum, or is missing and the address cannot be
            reached; the message says where to put it.
    """
    weights = settings.weights
    if weights.package is None:
        assert weights.url is not None  # protocols.py: a package or a url
        return download(weights.url, cache_folder() / "weights" / weights.file, weights.checksum)
    advice = f"reinstall the package {weights.package.replace('_', '-')}"
    try:
        path = Path(str(resources.files(weights.package))) / weights.file
    except ModuleNotFoundError as error:
        raise FileNotFoundError(f"no weights of {settings.name}; {advice}") from error
    if not path.is_file():
        raise FileNotFoundError(f"no weights of {settings.name} at {path}; {advice}")
    require_checksum(path, weights.checksum, f"; {advice}")
    return path
