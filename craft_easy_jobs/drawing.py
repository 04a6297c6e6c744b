"""A chain drawn as text for a terminal."""

from collections.abc import Mapping

from craft_easy_jobs.chaining import Chain, ChainStep, start_order


def draw(chain: Chain, states: Mapping[str, str] | None = None) -> str:
    """The chain's steps in the order of their start, each below and right of those that it waits for.

    Args:
        states: by job name, shown beside the steps; with None, there is no such column.
    """
    steps = {step.job: step for step in chain.steps}
    depths: dict[str, int] = {}
    for job in start_order(chain):
        depths[job] = 1 + max((depths[name] for name in steps[job].depends_on), default=-1)
    names = {job: _plain("  " * (depth - 1) + "→ " * bool(depth) + job) for job, depth in depths.items()}
    columns = [names]
    if states is not None:
        columns.append({job: _plain(states.get(job, "waiting")) for job in names})
    columns.append({job: _about(steps[job]) for job in names})
    widths = [max(map(len, column.values())) for column in columns]
    lines = [_plain(f"{chain.name}  {chain.description}".rstrip())]
    for job in names:
        cells = (column[job].ljust(width) for column, width in zip(columns, widths, strict=True))
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def _about(step: ChainStep) -> str:
    facts = [f"after {', '.join(step.depends_on)}"] if step.depends_on else []
    if step.on_failure == "continue":
        facts.append("on failure continue")
    if step.on_failure == "retry":
        facts.append(f"on failure retry {step.retries} times, each after {step.retry_delay_seconds} s")
    return _plain("; ".join(facts))


def _plain(text: str) -> str:
    """On one line, without what steers a terminal."""
    return "".join(character for character in text if character.isprintable())
