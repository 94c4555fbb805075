"""Parts of this program that run in a child as the job's account; see `program.call`."""

from typing import Any, Callable

from train_classifier.worker import listing, pack, place, store, tree

#: Those that take long: within the caller's own process they are told when to end early.
CHECKED: dict[str, Callable[[dict[str, Any], Callable[[], None]], dict[str, Any]]] = {"pack": pack.pack}
PARTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "pack": pack.pack,
    "place-fill": place.fill_part,
    "stock": listing.take_stock,
    "tidy": tree.tidy_part,
    "mend": tree.mend_part,
    "write": store.write_part,
}
