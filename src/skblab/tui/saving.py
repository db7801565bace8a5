"""What was done on the screen, as a run that can be saved."""

from pathlib import Path

from skblab.saved import SavedRun, complained, output
from skblab.session import RuleOutcome
from skblab.tui.app import HoldApp

NOTE = "What a person decided on the screen of skblab hold, and when."


def saved(app: HoldApp) -> SavedRun:
    """Return what was done on a screen that has ended, after its rules."""
    client, lab, decided = app.client, app.lab, app.held.decided
    if client.status is None:  # a signal has ended the screen, and the client
        decided.interrupt()
    rules = [RuleOutcome.of(one) for one in app.held.ended]
    outcome = {
        "end": app.lost.what if app.lost else "",
        "status": client.status,
        **({} if client.said is None else output("stdout", client.said, lab.spec)),
        "went": decided.went,
        "unfired": tuple(str(one.rule) for one in rules if one.is_untested),
        "complaints": complained(lab),
    }
    return SavedRun(
        spec=lab.spec,
        client=tuple(app.command),
        rules=tuple(map(str, app.held.rules_at_first)),
        decisions=tuple(map(str, decided.decisions)),
        directory=str(Path.cwd()),
        terminal=True,
        image=lab.image.name,
        outcome={key: value for key, value in outcome.items() if value not in {None, "", ()}},
        note=NOTE,
    )
