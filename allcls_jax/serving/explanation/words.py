"""What `explain` says of its maps: below pictures, on the terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from allcls_jax import DISCLAIMER, terminal
from allcls_jax.serving.explanation.checks import HARDLY, LIMIT, SanityCheck

NO_MAP = "no map: nothing speaks for the class explained"
BY_CONSTRUCTION = (
    "beside the cell integrated gradients are 0 whatever the network, for black is "
    "where they begin: their share on the cell says nothing"
)

# Of the difference that a map should add up to; beyond it more steps are advised.
_COMPLETE = 0.05
_SHOWN = 50  # rows of the table of images; reasons of images that could not be read


def explained(views: int) -> str:
    """Says what maps and `log_odds` are of, probabilities being of so many views."""
    what = "calibrated log odds of the class explained"
    if views == 1:
        return what
    return f"{what}, of the picture as it is; probabilities are of {views} views of it"


def share_line(row: dict[str, Any]) -> str:
    """Says how much of a map lies on the cell, from an image's row of the record."""
    if row["share_on_cell"] is None:
        return f"{NO_MAP}; its share on the cell is undefined"
    return (
        f"{row['share_on_cell']:.0%} of the map lies on the cell, which covers "
        f"{row['cell_share_of_picture']:.0%} of the picture"
    )


def completeness_line(row: dict[str, Any]) -> str:
    """Says what integrated gradients add up to, and what they should."""
    found = row["completeness"]
    return (
        f"The map adds up to {found['sum']:+.3f}; log odds differ from a black "
        f"picture's by {found['difference_to_black']:+.3f}"
    )


def note(notes: Sequence[str], sanity: SanityCheck | None) -> str:
    """What must be known wherever a map is shown."""
    words = [*notes]
    if sanity is not None:
        words.append(f"Sanity check: {sanity.verdict}")
    return ". ".join(f"{word[:1].upper()}{word[1:]}" for word in words) + "."


def warning(sanity: SanityCheck | None) -> str:
    """Returns what must stand out above a map, or nothing."""
    untrusted = sanity is not None and sanity.hardly_change
    return HARDLY if untrusted else ""


def tell(record: dict[str, Any], out: Path) -> None:
    """Says what was found."""
    _show_images(record)
    if record["explained"] != explained(1):
        terminal.say(f"explained: {record['explained']}")
    _show_sanity(record["sanity_check"])
    for row in [row for row in record["images"] if row["error"]][:_SHOWN]:
        terminal.warn(f"{row['image']}: {row['error']}")
    if record["unreadable"] > _SHOWN:
        terminal.warn(f"… and {record['unreadable'] - _SHOWN:,} more unreadable images")
    if record["left_out"]:
        terminal.warn(
            f"{record['left_out']:,} of {record['listed']:,} images are left out; "
            "--limit explains more"
        )
    error = record["completeness_error"]
    if error is not None and error > _COMPLETE:
        terminal.warn(
            f"the maps miss what they should add up to by {error:.0%} of it; more "
            "--steps come nearer"
        )
    on_cell, area = record["mean_share_on_cell"], record["mean_cell_share_of_picture"]
    if on_cell is not None and on_cell < area:
        terminal.warn(
            f"{on_cell:.0%} of the maps lies on the cells, less than their "
            f"{area:.0%} of the pictures: the model looks beside the cells"
        )
    check = record["sanity_check"]
    say = terminal.say if check["hardly_change"] is False else terminal.warn
    say(f"sanity check: {check['verdict']}")
    for note_ in record["notes"]:
        terminal.warn(note_)
    terminal.say(f"all of it in {out}")
    terminal.say(DISCLAIMER)


def _show_images(record: dict[str, Any]) -> None:
    """Shows a row for each image, and the means."""
    explained = [row for row in record["images"] if not row["error"]]
    sums = any(row["completeness"] for row in explained)
    header = ["image", "P(ALL)", "called", "explained", "map on cell", "cell's area"]
    rows: list[list[str]] = [
        [
            row["file"],
            f"{row['probability']:.3f}",
            row["decision"],
            row["explained"],
            _share(row["share_on_cell"]),
            _share(row["cell_share_of_picture"]),
            *([_error(row["completeness"])] if sums else []),
        ]
        for row in explained[:_SHOWN]
    ]
    if sums:
        header.append("error of sum")
    mean = [
        f"mean of {len(explained):,}",
        "",
        "",
        "",
        _share(record["mean_share_on_cell"]),
        _share(record["mean_cell_share_of_picture"]),
        *([_share(record["completeness_error"])] if sums else []),
    ]
    if len(explained) > _SHOWN:
        rows.append([f"… {len(explained) - _SHOWN:,} more", *[""] * (len(header) - 1)])
    settings = ", ".join(f"{k} {v}" for k, v in record["settings"].items())
    terminal.show_table(
        f"Maps ({settings}): share of the absolute values on the cell, beside the "
        "cell's share of the picture",
        header,
        [*rows, [""] * len(header), mean],
    )
    if record["share_on_cell_says_nothing"]:
        terminal.say(record["share_on_cell_says_nothing"])


def _show_sanity(check: dict[str, Any]) -> None:
    """Shows how alike maps of trained and random weights are."""
    if not check["stages"]:
        return
    terminal.show_table(
        f"Sanity check: maps of random weights beside the trained ones "
        f"({check['images']} images, {check['draws']} draws); from {LIMIT:g} on they "
        "hardly change",
        (
            "random from the head to",
            "rank correlation",
            "with signs",
            "Pearson's",
            "undefined",
        ),
        [
            (
                stage["randomised"][-1],
                _figure(stage["spearman"]),
                _figure(stage["spearman_signed"]),
                _figure(stage["correlation"]),
                f"{stage['undefined']} of {stage['pairs']}",
            )
            for stage in check["stages"]
        ],
    )


def _share(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.1%}"


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def _error(found: dict[str, float]) -> str:
    return f"{found['error']:.3f} of {found['difference_to_black']:+.3f}"
