"""The command that tells from a run's ledger who touched which round.

Help needs click alone; what the command works with is imported in its body.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simulations.command_parts import path_type

if TYPE_CHECKING:
    from fedsparse.runs import RunFolder
    from fedsparse.runs.ledger import Entry

EXAMPLES = """\b
Examples:
  fedsparse influence runs/demo-fedtiny-s0
  fedsparse influence runs/demo-fedtiny-s0 --client 3
  fedsparse influence runs/demo-fedtiny-s0 --client 3 --ids > ids.txt
  fedsparse influence runs/demo-fedtiny-s0 --sample 512 --json
  fedsparse influence runs/demo-fedtiny-s0 --sign key.pem
  fedsparse influence runs/demo-fedtiny-s0 --client 3 --verify-key public.pem

\b
Exit codes: 0 the ledger is whole; 2 a mistake; 3 the ledger was changed or lacks entries.
"""

Json = dict[str, Any]


@click.command(epilog=EXAMPLES, short_help="Tell who touched which round of a run.")
@click.argument("folder", metavar="RUN", type=path_type)
@click.option("--client", type=int, metavar="ID", help="The rounds that a client touched.")
@click.option(
    "--sample",
    type=int,
    metavar="ID",
    help="The clients that hold a sample (a row of the training set), with a proof for each.",
)
@click.option("--ids", is_flag=True, help="With --client: its training samples' ids, one a line.")
@click.option("--sign", type=path_type, metavar="KEY.pem", help="Sign the ledger with Ed25519.")
@click.option(
    "--verify-key", type=path_type, metavar="KEY.pem", help="Check the signature by a public key."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print all that was found as one JSON object."
)
def influence(
    folder: Path,
    client: int | None,
    sample: int | None,
    ids: bool,
    sign: Path | None,
    verify_key: Path | None,
    as_json: bool,
) -> None:
    """Tell from the ledger of the run in folder RUN who touched which round, once it is verified.

    Each entry of the ledger names the hash of the one before; they are compared with the rows of
    clients, the configuration and the final model. With a client or a sample also: what an exact
    deletion would have to repeat.
    """
    from fedsparse.runs import RunFolder
    from fedsparse.runs.ledger import Ledger
    from fedsparse.runs.signature import sign as sign_ledger
    from fedsparse.runs.signature import signed
    from simulations import influence_evidence as evidence
    from simulations.influence import checked

    if ids and (client is None or as_json):
        raise click.UsageError("--ids: give --client, and leave --json out")
    run = RunFolder.open(folder)
    entries = checked(run)
    found: Json = evidence.summary(run, entries)
    if sign is not None:
        with run.lock():
            found["signature"] = str(sign_ledger(Ledger(run.path), sign))
    if verify_key is not None:
        found["signed"] = signed(Ledger(run.path), verify_key, entries)
    if client is not None:
        found |= {"client": evidence.of_client(run, entries, client)}
        found["client"]["deletion"] = _deletion(run, entries, "clients", client)
    if sample is not None:
        found |= {"sample": _sample(run, entries, sample)}
    if ids:
        click.echo("\n".join(map(str, _ids(run, found["client"]["client"]))))
    elif as_json:
        click.echo(json.dumps(found))
    else:
        _show(found)


def _ids(run: "RunFolder", client: int) -> list[int]:
    """Return the ids of the samples that a client trains on."""
    from fedsparse import data
    from strategies.ledger_rows import trained_ids

    found: list[int] = trained_ids(data.of(run.config), client).tolist()
    return found


def _sample(run: "RunFolder", entries: "list[Entry]", sample: int) -> Json:
    from fedsparse import data
    from simulations import influence_evidence as evidence

    found = evidence.of_sample(run, entries, data.of(run.config), sample)
    return found | {"deletion": _deletion(run, entries, "samples", sample)}


def _deletion(run: "RunFolder", entries: "list[Entry]", kind: str, number: int) -> Json:
    """Return what an exact deletion of one client or sample takes."""
    from fedsparse import data
    from fedsparse.config import ForgetConfig
    from simulations.influence import deletion, first_touched

    forget = ForgetConfig(**{kind: str(number)})
    federated = data.of(run.config) if kind == "samples" else None
    return deletion(run, str(forget.kind), first_touched(run, entries, federated, forget))


# -- shown to a reader -----------------------------------------------------------------------


def _show(found: Json) -> None:
    click.echo(
        f"ledger      intact, {found['entries']} entries, last {found['head'][:16]}\n"
        f"rounds      {found['rounds']}, from round {found['begins']} on\n"
        f"clients     {found['asked']} asked, {found['counted']} in the model"
    )
    if "signature" in found:
        click.echo(f"signature   {found['signature']}")
    if "signed" in found:
        click.echo(f"signed      {found['signed']} of {found['entries']} entries")
    if "client" in found:
        _show_client(found["client"])
    if "sample" in found:
        _show_sample(found["sample"])


def _show_client(one: Json) -> None:
    from simulations.sweep_commands import show_table

    click.echo(f"\nclient {one['client']}")
    if one["rounds"]:
        show_table(
            ["round", "reply", "share of samples", "down", "up", "mask"],
            [
                [
                    str(row["round"]),
                    "counted" if row["counted"] else "not counted",
                    "-" if row["share"] is None else f"{100 * row['share']:.2f} %",
                    str(row["bytes_down"]),
                    str(row["bytes_up"]),
                    "-" if row["mask"] is None else row["mask"][:12],
                ]
                for row in one["rounds"]
            ],
        )
        counted = [row["round"] for row in one["rounds"] if row["counted"]]
        click.echo(
            f"counted in rounds {_spans(counted)}: {one['samples'] or 0} samples, "
            f"{one['bytes_down']} bytes down, {one['bytes_up']} up, {len(one['masks'])} mask(s)"
        )
    else:
        click.echo("never asked")
    click.echo(_needed(one["deletion"]))


def _show_sample(one: Json) -> None:
    from simulations.sweep_commands import show_table

    click.echo(f"\nsample {one['sample']}")
    show_table(
        ["client", "used for", "rounds", "proof"],
        [
            [
                str(row["client"]),
                row["part"],
                _spans(row["rounds"]),
                "-" if row["proof"] is None else f"verified, {len(row['proof']['path'])} hashes",
            ]
            for row in one["clients"]
        ],
    )
    click.echo(_needed(one["deletion"]))


def _spans(rounds: list[int]) -> str:
    from fedsparse.number_set import text_of

    return text_of(rounds) or "-"


def _needed(deletion: Json) -> str:
    """Say what an exact deletion takes."""
    first, back = deletion["first_influence"], deletion["rewind_to"]
    if first is None:
        return "exact deletion: nothing to repeat, no round was touched"
    if back is not None:
        return f"exact deletion: back to checkpoint {back}, {deletion['repeat']} rounds to repeat"
    why = "" if first == 0 else f" (no checkpoint from before round {first} is left)"
    return f"exact deletion: from the start, {deletion['repeat']} rounds to repeat{why}"
