"""A look through a folder of the spool, from its first slice to its last."""

from craft_easy_jobd.intake import Claim, Slices


def claims_of(slices: Slices) -> list[Claim]:
    """All claims of a look that goes to its end."""
    claims: list[Claim] = []
    while True:
        try:
            claims += next(slices)
        except StopIteration as end:
            return [*claims, *end.value]
