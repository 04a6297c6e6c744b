"""Run ids that nobody chose."""


def new_run_id() -> str:
    """A UUIDv7: ids made one after the other sort in that order."""
    # Most requests bring their own id; who idles, or starts, does not pay for the import.
    import uuid_utils

    return str(uuid_utils.uuid7())
