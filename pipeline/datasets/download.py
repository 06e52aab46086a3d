"""Public data sets from their publishers, verified and converted to data set folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from components.errors import InputError
from pipeline.datasets import movielens, online_retail
from pipeline.datasets.fetching import DamagedArchiveError, fetch, verify_md5
from pipeline.datasets.folders import check_replaceable, published


@dataclass(frozen=True)
class Source:
    """Where a data set comes from and how it becomes a folder.

    Attributes:
        url: Of the publisher.
        archive: Name of the downloaded file.
        md5: Checksum that the publisher states; empty if there is none.
        licence: One line for the user.
        convert: Reads the archive, writes the tables into a folder, raises `DamagedArchiveError`.
    """

    url: str
    archive: str
    md5: str
    licence: str
    convert: Callable[[Path, Path], None]


SOURCES: Mapping[str, Source] = {
    "movielens-1m": Source(
        url="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
        archive="ml-1m.zip",
        md5="c4d9eecfca2ab87c1945afe126590906",
        licence="MovieLens 1M by GroupLens: research use only, no redistribution",
        convert=movielens.convert,
    ),
    "online-retail": Source(
        url="https://archive.ics.uci.edu/static/public/352/online+retail.zip",
        archive="online-retail.zip",
        md5="",
        licence="Online Retail by D. Chen, UCI Machine Learning Repository: CC BY 4.0",
        convert=online_retail.convert,
    ),
}


def download(
    name: str,
    directory: Path,
    *,
    sources: Mapping[str, Source] = SOURCES,
    report: Callable[[str], None] = print,
) -> None:
    """Downloads a data set and writes it as a data set folder.

    What is verified: of MovieLens 1M the archive's published MD5, and length and git blob id of
    `ratings.dat`. Of Online Retail no checksum is published: the zip's own checksums (CRC-32, against
    damage, not against forgery), the eight columns and the 541,909 lines that the publisher states.

    The archive is kept beside `directory` while it is incomplete, so that the same command goes on
    where it stopped; a complete one that was put there by hand is used and left there.

    Args:
        name: `movielens-1m` or `online-retail`.
        directory: Folder to make; one made by `tandem data` before is replaced.
        sources: Data sets by name.
        report: Takes a line of progress.

    Raises:
        InputError: Unknown name, no network, a folder that is not ours or not writable.
        DamagedArchiveError: The archive is not what the publisher offers.
    """
    if name not in sources:
        raise InputError(f"unknown data set {name!r}; known: {', '.join(sorted(sources))}")
    source = sources[name]
    directory = Path(directory).absolute()
    check_replaceable(directory)
    archive = directory.parent / source.archive
    by_hand = archive.is_file()
    try:
        if by_hand:
            report(f"{archive}: there already, not downloaded again")
            verify_md5(archive, source.md5)
        else:
            directory.parent.mkdir(parents=True, exist_ok=True)
            fetch(source.url, archive, md5=source.md5, report=report)
        report(f"{archive.name}: converting")
        with published(directory, {"data_set": name, "url": source.url, "md5": source.md5}) as folder:
            source.convert(archive, folder)
    except DamagedArchiveError as error:
        if by_hand:
            raise DamagedArchiveError(f"{error}; delete {archive} and run the same command again") from error
        if archive.exists():
            archive.unlink()
            raise DamagedArchiveError(f"{error}; it was deleted, run the same command again") from error
        raise
    except OSError as error:
        raise InputError(
            f"{error.filename or directory.parent} cannot be written: {error.strerror or error}"
        ) from error
    if not by_hand:
        archive.unlink()
    report(source.licence)


__all__ = ["SOURCES", "Source", "download"]
