"""Parts of this program that run in a child as the job's user; see `program.call`."""

from typing import Any, Callable

from train_classifier.worker import listing, pack, place, stamp, tree

PARTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "pack": pack.pack,
    "place-fill": place.fill_part,
    "stock": listing.take_stock,
    "tidy": tree.tidy_part,
    **stamp.PARTS,
}
