"""Our package layers as the engine knows them: listed and removed."""

from collections.abc import Sequence
from typing import Any, Optional

from train_classifier.worker import engine


def listed(client: Any, uid: Optional[int] = None, base: Optional[str] = None) -> list[dict[str, Any]]:
    """Return what the engine lists of our package layers: those of an account, or over a base.

    The SDK's own list asks for each image once more, and fails when one is gone by then.
    """
    wanted = [f"{engine.LABEL}=1", f"{engine.LABEL}.kind=image"]
    wanted += [f"{engine.LABEL}.uid={uid}"] if uid is not None else []
    wanted += [f"{engine.LABEL}.base={base}"] if base is not None else []
    found: list[dict[str, Any]] = engine.patiently(lambda: client.api.images(filters={"label": wanted}))
    return found


def remove(names: Sequence[str]) -> bool:
    """Remove an image by its tags; False when it is in use. Large layers take minutes: no time limit."""
    import docker.errors

    client = engine.connect(timeout=None)
    try:
        for name in names:
            client.images.remove(name)
    except docker.errors.APIError as error:
        # 409: a container, perhaps of another user, was made from it.
        if error.status_code in (404, 409):
            return False
        raise
    finally:
        client.close()
    return True
